#!/usr/bin/env bash
# Which skips help SK-RD4AD: none, E3, E2, both. First words: settings (default: all); flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.sweep skips "$@"
