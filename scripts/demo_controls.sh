#!/usr/bin/env bash
# That the demo is not trivial: controls that train nothing on it, then reverse distillation on a random teacher.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt
python -m scripts.controls --dataset demo --net efficientnet_lite0
exec python main.py --dataset demo --class all --variant rd4ad --net efficientnet_lite0 --weights random --epochs 12 \
    --batch_size 8 --seeds 0 --save_path runs --name rd4ad_random_teacher "$@"
