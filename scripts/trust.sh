#!/usr/bin/env bash
# The long form of what the tests hold in a short one: generated cases, deaths before every file operation, a soak.
# About a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt requirements-dev.txt
export OMP_NUM_THREADS=1
python -W ignore -m scripts.generated_cases --count 3000
python -m scripts.deaths
python -m scripts.soak
