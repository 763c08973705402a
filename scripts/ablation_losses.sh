#!/usr/bin/env bash
# Five distillation losses, with and without the consistency loss. First words: settings; flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.sweep losses "$@"
