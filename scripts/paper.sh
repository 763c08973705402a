#!/usr/bin/env bash
# The tables of a paper beside its published metrics: bash scripts/paper.sh PAPER [TABLE ...] [flags of main.py]
# Without a name it lists the papers; the tables of each are in report/papers.py, and the first one is the default.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m scripts.paper "$@"
