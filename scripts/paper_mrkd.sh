#!/usr/bin/env bash
# MRKD on MVTec AD, beside its published metrics. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper mrkd "$@"
