#!/usr/bin/env bash
# The seven subsets of levels, trained and scored. First words: settings (0+1 ...); flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.sweep levels "$@"
