#!/usr/bin/env bash
# anomalib's reverse distillation on MVTec AD, beside its published metrics. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper anomalib "$@"
