#!/usr/bin/env bash
# The tests with the lowest versions that requirements.txt allows, in an environment of their own, .venv-lowest; arguments
# go to pytest. With --print alone, the versions are printed and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# requirements.txt with every `>=` as `==`; another form than NAME>=VERSION or NAME==VERSION is an error.
lowest_versions() {
    sed -E 's/[[:space:]]*(#.*)?$//; /^$/d; s/^([A-Za-z0-9._-]+)[[:space:]]*>=[[:space:]]*/\1==/' "$1" |
        awk '!/^[A-Za-z0-9._-]+==[0-9A-Za-z.+!]+$/ {
                 print "error: requirements.txt: want NAME>=VERSION or NAME==VERSION, found " $0 > "/dev/stderr"; exit 2
             } { print }'
}

if [ "${1:-}" = --print ]; then
    lowest_versions "${2:-requirements.txt}"
    exit
fi
VENV=.venv-lowest
mkdir -p "$VENV"
lowest=$VENV/requirements.txt
lowest_versions requirements.txt > "$lowest"
export PIP_CONSTRAINT=$PWD/$lowest # what the tests need moves none of them
. scripts/setup.sh "$lowest" requirements-dev.txt
export OMP_NUM_THREADS=1 # one thread a test process: pytest runs one process a core
exec pytest -n "$(nproc)" "$@"
