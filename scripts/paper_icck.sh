#!/usr/bin/env bash
# Tables 1 to 7 of ICCK (masked reverse distillation) by number, table 1 by default. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper icck "$@"
