#!/usr/bin/env bash
# SCConv, SimAM and FMM on and off: eight settings. First words: settings; flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.sweep masked "$@"
