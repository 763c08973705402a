#!/usr/bin/env bash
# DRD on MVTec AD, beside its published figures. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper drd "$@"
