#!/usr/bin/env bash
# Runs the tests and measurements of a machine with a GPU, and collects their results.
#
#     bench/on_gpu.sh [OUT] [ARGUMENT ...]       OUT: gpu-results; arguments: of throughput.py
#
#   OUT/tests.txt           the GPU tests: both backends give the same images, and so do slices
#                           that are kept on the device
#   OUT/bench.txt, .json    every stage: four backbones at 224 and 512, limits, peers
#   OUT/*.jsonl             the records, for bench/results/ of the same commit
#   OUT/throughput.png
#
# It does not measure the rate of gathering from a store on the device, nor how uploads
# overlap with training (`ichfast train --profile` shows that).
#
# After a failed test the measurements still run, and the status is 1. PYTHON names the
# interpreter.
set -euo pipefail
OUT=$(realpath -m "${1:-gpu-results}")
shift || true
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

status=0
"$PYTHON" -m pytest -p no:cacheprovider -m gpu tests/gpu 2>&1 | tee "$OUT/tests.txt" || status=1
XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}
export XDG_CACHE_HOME
results=$XDG_CACHE_HOME/ichfast/bench/results
"$PYTHON" bench/throughput.py --full --json "$OUT/bench.json" "$@" | tee "$OUT/bench.txt" || status=1
find "$results" -type f -newer "$OUT/tests.txt" -exec cp {} "$OUT" \; || status=1
exit $status
