#!/usr/bin/env bash
# SK-RD4AD beside its published metrics on mvtec (default), visa or vad: the first word. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper sk_rd4ad "$@"
