#!/usr/bin/env bash
# Tests and measures a machine with a GPU, part after part, and collects the results.
#
#     bench/on_gpu.sh short  [OUT] [ARGUMENT ...]    ends within 8 minutes
#     bench/on_gpu.sh --full [OUT] [ARGUMENT ...]    every stage; without a time limit
#
# OUT is a folder, gpu-results by default. Arguments are for throughput.py.
#
#   OUT/doctor.txt        what the machine has
#   OUT/tests.txt         the GPU tests
#   OUT/bench.txt         tables and messages of the measurements
#   OUT/*.jsonl           the records, each written as soon as it is made
#   OUT/throughput.png
#   OUT/bench.json        all records as one document; --full only
#
# After a part that fails or reaches its time limit the next one begins, and the status
# is 1; what the doctor finds does not count. PYTHON names the interpreter. In a tree without .git, ICHFAST_COMMIT names
# the commit for the records. bench/README.md says how to run it without a network.
set -euo pipefail

mode=${1:-}
case $mode in
  short | --full) shift ;;
  *)
    sed -n '3,6s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
OUT=$(realpath -m "${1:-gpu-results}")
shift || true
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

part() { # SECONDS LOG COMMAND ...: runs COMMAND, whose processes end 5 s after the limit
  local seconds=$1 log=$OUT/$2
  shift 2
  echo "== $*" | tee -a "$log"
  # Not a pipe: it would wait for a process that outlives the part.
  timeout -k 5 "$seconds" "$@" > >(tee -a "$log") 2>&1 &
  wait $! || status=1
}
# Ends the whole process group: timeout of coreutils 9.1, terminated right after its fork,
# ends without its command. Until the group exists, the process alone.
trap 'kill -- -$! 2>/dev/null || kill $! 2>/dev/null; wait; exit 130' INT TERM

bench() { # SECONDS ARGUMENT ...
  part "$1" bench.txt "$PYTHON" bench/throughput.py --out "$OUT" "${@:2}"
}

# -v, so that the tests of a killed part can be read too. Most of their time is the CPU's.
gpu_tests=("$PYTHON" -m pytest -v -p no:cacheprovider -n auto --maxprocesses 8
  --dist worksteal -m gpu tests/gpu)

part 20 doctor.txt "$PYTHON" -m ichfast doctor
status=0
if [ "$mode" = short ]; then
  part 105 tests.txt "${gpu_tests[@]}"
  bench 115 loader --size 224 "$@"
  bench 45 packed --size 224 "$@"
  bench 35 train --size 224 --arch efficientnet-b0 "$@"
  bench 55 train --size 224 --arch xresnet50-attn --arch res2net50 --arch resnext50 \
    --peers none "$@"
  bench 70 train --size 512 --arch efficientnet-b0 --arch xresnet50-attn \
    --arch res2net50 --arch resnext50 --peers none "$@"
else
  part infinity tests.txt "${gpu_tests[@]}"
  bench infinity --full --json "$OUT/bench.json" "$@"
fi
exit $status
