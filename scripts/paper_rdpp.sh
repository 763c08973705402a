#!/usr/bin/env bash
# RD++ beside its published metrics on mvtec (default) or btad: the first word. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper rdpp "$@"
