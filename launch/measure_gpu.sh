#!/usr/bin/env bash
# Measures cotjax on one GPU: training, decoding, memory. Usage: launch/measure_gpu.sh [OUT]
# Prints each figure as it comes and appends all to OUT (default measured.txt). An H200 takes some 8
# minutes; a card with less memory fails where a model does not fit, and goes on. PYTHON=... measures
# with that interpreter, as it is; without it launch/setup.sh makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
case ${1:-} in
    -*) sed -n '2,5s/^# //p' "$0" && exit 0 ;;
esac
out=${1:-measured.txt}
if [ -z "${PYTHON:-}" ]; then
    . launch/setup.sh "$(cuda_extra)"
    PYTHON=$venv/bin/python
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.95

# bench SECONDS ARGUMENT...: one measurement, stopped after so many seconds.
bench() {
    limit=$1
    shift
    echo "\$ cotjax bench $*"
    timeout "$limit" "$PYTHON" -m cotjax.cli bench "$@" || echo "  ended with exit code $?"
}

train="train --dtype bfloat16 --length 4096 --scan --rounds 1"
{
    date -u +%F
    "$PYTHON" -c 'import jax; print(jax.__version__, jax.devices())'
    # shellcheck disable=SC2086  # $train is several words
    {
        bench 100 $train --model qwen3-4b --batch 4 --remat dots --profile
        bench 70 $train --model qwen3-4b --batch 4 --remat dots --rows trees
        bench 70 $train --model qwen3-4b --batch 4 --remat dots --rows packed
        bench 70 $train --model qwen3-8b --batch 4 --remat dots --lora-rank 16
        bench 150 $train --model qwen3-1.7b --batch 8 --remat dots --peer transformers --rounds 2
    }
    bench 70 sample --model qwen3-4b --dtype bfloat16 --slots 64 --prompt 512 --new 128
    bench 70 sample --model qwen3-4b --dtype bfloat16 --slots 256 --prompt 512 --new 128 --rounds 2
} 2>&1 | tee -a "$out"
