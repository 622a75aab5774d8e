#!/usr/bin/env bash
# Measures cotjax on one GPU: training, decoding, rollouts, memory. Usage: launch/measure_gpu.sh [OUT]
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

train="train --dtype bfloat16 --length 4096 --rounds 1"
{
    date -u +%F
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || true
    "$PYTHON" -c 'import jax; print(jax.__version__, jax.devices())'
    # shellcheck disable=SC2086  # $train is several words
    {
        # From what says most to what says least, for a run that is cut short.
        bench 110 $train --model qwen3-4b --batch 8 --accumulate 2 --remat dots
        bench 130 $train --model qwen3-1.7b --batch 8 --accumulate 4 --remat dots --peer transformers
        bench 60 sample --model qwen3-4b --dtype bfloat16 --slots 64 --prompt 512 --new 128 --rounds 3
        bench 40 kernels --model qwen3-4b
        bench 60 sample --model qwen3-4b --dtype bfloat16 --slots 256 --prompt 512 --new 128 --rounds 2
        bench 110 forms --model qwen3-4b --seconds 90
        for rows in trees packed; do
            bench 60 $train --scan --model qwen3-4b --batch 8 --remat mlp --rows "$rows"
        done
        bench 60 $train --scan --model qwen3-8b --batch 8 --remat auto --lora-rank 16
        bench 60 rollout --episodes 256 --slots 256 --steps 12 --rounds 1
    }
} 2>&1 | tee -a "$out"
