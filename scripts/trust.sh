#!/usr/bin/env bash
# The long forms of what the tests hold in short ones: deaths before every file operation, then generated run files,
# checkpoints and command lines. About half an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt requirements-dev.txt
export OMP_NUM_THREADS=1
python -m scripts.deaths
python -m scripts.generated_cases --count 3000
