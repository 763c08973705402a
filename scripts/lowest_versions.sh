#!/usr/bin/env bash
# The tests with the lowest versions that requirements.txt allows, in an environment of their own, .venv-lowest; arguments
# go to pytest. With --print alone, the versions are printed and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# requirements.txt with every `>=` as `==`; another form than NAME>=VERSION or NAME==VERSION is an error.
lowest_versions() {
    awk -v file="$1" '
        { sub(/[ \t]*(#.*)?$/, "") }
        /^$/ { next }
        !/^[A-Za-z0-9._-]+[ \t]*[>=]=[ \t]*[0-9A-Za-z.+!]+$/ {
            print "error: " file ": want NAME>=VERSION or NAME==VERSION, found " $0 > "/dev/stderr"
            exit 2
        }
        { sub(/[ \t]*[>=]=[ \t]*/, "=="); print }' "$1"
}

if [ "${1:-}" = --print ]; then
    lowest_versions "${2:-requirements.txt}"
    exit
fi
VENV=.venv-lowest
mkdir -p "$VENV"
lowest=$VENV/requirements.txt
lowest_versions requirements.txt > "$lowest"
export PIP_CONSTRAINT=$lowest # what the tests need moves none of them
. scripts/setup.sh "$lowest" requirements-dev.txt
processes=$(nproc) # before the next line, which nproc heeds
export OMP_NUM_THREADS=1 # one thread a test process: pytest runs one process a core
exec pytest -n "$processes" "$@"
