#!/usr/bin/env bash
# Measures cotjax on one GPU: training, decoding, rollouts, memory. Usage: launch/measure_gpu.sh [OUT]
# Prints each figure as it comes and appends all to OUT (default measured.txt). It ends within
# MEASURE_SECONDS (default 480); what says most comes first, and what there is no time for is named.
# A card with less memory fails where a model does not fit, and goes on. PYTHON=... measures with
# that interpreter, as it is; without it launch/setup.sh makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
case ${1:-} in
    -*) sed -n '2,6s/^# //p' "$0" && exit 0 ;;
esac
out=${1:-measured.txt}
if [ -z "${PYTHON:-}" ]; then
    . launch/setup.sh "$(cuda_extra)"
    PYTHON=$venv/bin/python
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
# Rows of trees and packed rows have one program.
JAX_COMPILATION_CACHE_DIR=$(mktemp -d)
export JAX_COMPILATION_CACHE_DIR
trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT
ends=$((SECONDS + ${MEASURE_SECONDS:-480}))

# bench SECONDS ARGUMENT...: one measurement, stopped after so many seconds, or when time is over.
bench() {
    limit=$1
    shift
    echo "\$ cotjax bench $*"
    left=$((ends - SECONDS))
    if [ "$left" -lt 20 ]; then
        echo "  no time left"
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    timeout "$limit" "$PYTHON" -m cotjax.cli bench "$@" || echo "  ended with exit code $?"
    echo "  $((ends - SECONDS)) s left"
}

train="train --dtype bfloat16 --length 4096 --rounds 1"
sample="sample --model qwen3-4b --dtype bfloat16 --prompt 512 --new 128"
{
    date -u +%F
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || true
    "$PYTHON" -c 'import jax; print(jax.__version__, jax.devices())'
    # shellcheck disable=SC2086  # $train and $sample are several words
    {
        bench 150 $train --model qwen3-4b --batch 8 --accumulate 2 --remat dots
        bench 140 $train --model qwen3-1.7b --batch 8 --accumulate 4 --remat dots --peer transformers
        bench 70 $sample --slots 64 --rounds 3
        bench 50 kernels --model qwen3-4b
        for rows in trees packed; do
            bench 70 $train --scan --model qwen3-4b --batch 8 --remat mlp --rows "$rows"
        done
        bench 70 $sample --slots 256 --rounds 2
        bench 70 rollout --episodes 256 --slots 256 --steps 12 --rounds 1
        bench 70 $train --scan --model qwen3-8b --batch 8 --remat auto --lora-rank 16
        bench 120 forms --model qwen3-4b --seconds 100
    }
} 2>&1 | tee -a "$out"
