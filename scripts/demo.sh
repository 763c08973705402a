#!/usr/bin/env bash
# Train and score the embedded benchmark with the offline teacher; further flags go to main.py (--fresh does it again).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt
exec python main.py --dataset demo --class all --variant rd4ad --net efficientnet_lite0 --epochs 12 --batch_size 8 \
    --seeds 0 1 2 --save_path runs --vis "$@"
