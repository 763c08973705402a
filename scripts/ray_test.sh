#!/usr/bin/env bash
# The tests of sweeps on Ray, on a cluster of two nodes on this machine, in the environment of the other tests with
# requirements-ray.txt in it. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh requirements.txt requirements-dev.txt requirements-ray.txt
exec pytest tests/test_ray.py "$@"
