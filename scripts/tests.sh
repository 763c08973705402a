#!/usr/bin/env bash
# Lint, types and tests, in an environment made from the project's own files; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt requirements-dev.txt
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS=1 # one thread a test process: pytest runs one process a core
exec pytest -n "$(nproc)" "$@"
