#!/usr/bin/env bash
# That the demo is not trivial: reverse distillation on a random teacher, then controls that train nothing, beside the
# demo's own runs where scripts/demo.sh has made them. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt
python main.py --dataset demo --class all --variant rd4ad --net efficientnet_lite0 --weights random --epochs 12 \
    --batch_size 8 --seeds 0 --save_path runs --name rd4ad_random_teacher "$@"
runs=(runs/demo/rd4ad_random_teacher)
[ -d runs/demo/rd4ad ] && runs=(runs/demo/rd4ad "${runs[@]}")
exec python -m scripts.controls --dataset demo --net efficientnet_lite0 --beside "${runs[@]}"
