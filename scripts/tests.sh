#!/usr/bin/env bash
# Lint, types and tests, in an environment made from the project's own files; further arguments go to pytest.
# With --quick first, the tests marked slow are left out: about a minute of tests on two cores, several for all.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt requirements-dev.txt
quick=()
if [ "${1:-}" = --quick ]; then
    quick=(-m "not slow")
    shift
fi
ruff check .
ruff format --check .
mypy
processes=$(nproc) # before the next line, which nproc heeds
export OMP_NUM_THREADS=1 # one thread a test process: pytest runs one process a core
exec pytest -n "$processes" ${quick[@]+"${quick[@]}"} "$@"
