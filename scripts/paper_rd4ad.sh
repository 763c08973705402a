#!/usr/bin/env bash
# RD4AD on MVTec AD, beside its published metrics. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper rd4ad "$@"
