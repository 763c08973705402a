#!/usr/bin/env bash
# Teachers compared on SK-RD4AD; NETS="efficientnet_lite0 res18" names others. Flags go to main.py.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra nets <<< "${NETS:-res18 res34 res50 wide_res50}"
exec "${PYTHON:-python}" -m scripts.sweep backbones "${nets[@]}" "$@"
