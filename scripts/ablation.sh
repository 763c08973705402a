#!/usr/bin/env bash
# The settings of an ablation compared: bash scripts/ablation.sh ABLATION [SETTING ...] [flags of main.py]
# Without a name it lists the ablations; the settings of each are in scripts/sweep.py, and all are the default.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.sweep "$@"
