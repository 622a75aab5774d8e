#!/usr/bin/env bash
# Measures cotjax on one GPU: training, decoding, rollouts, memory.
#
#   launch/measure_gpu.sh [--dry-run] [OUT]
#
# Prints each figure as it comes and appends all to OUT (default measured.txt). It ends within
# MEASURE_SECONDS (default 480), within which everything down to the rollouts has its time; what
# takes longer is stopped, and what there is no time for is named. A card with less memory fails
# where a model does not fit, and goes on. More seconds also measure what is behind the rollouts;
# nothing is begun with less than MEASURE_LEAST (default 20) left.
# PYTHON=... measures with that interpreter, as it is; without it launch/setup.sh makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
case ${1:-} in
    --dry-run) dry_run=yes && shift ;;
    -*) sed -n '2,11p' "$0" && exit 0 ;;
esac
out=${1:-measured.txt}
ends=$((SECONDS + ${MEASURE_SECONDS:-480}))
missing=

# bench SECONDS ARGUMENT...: one measurement, stopped after so many seconds, or when time is over.
bench() {
    limit=$1
    shift
    echo "\$ cotjax bench $*"
    if [ "$dry_run" = yes ]; then
        echo "  at most $limit s"
        return
    fi
    left=$((ends - SECONDS))
    if [ "$left" -lt "${MEASURE_LEAST:-20}" ]; then
        echo "  no time left"
        missing+="  $*"$'\n'
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    # A compiler does not hear that it is to stop.
    timeout -k 2 "$limit" "$PYTHON" -m cotjax.cli bench "$@" || {
        echo "  ended with exit code $?"
        missing+="  $*"$'\n'
    }
    echo "  $((ends - SECONDS)) s left"
}

measure() {
    local train="train --dtype bfloat16 --length 4096 --rounds 1"
    local sample="sample --model qwen3-4b --dtype bfloat16 --prompt 512 --new 128"
    # shellcheck disable=SC2086  # $train and $sample are several words
    {
        # MFU at the shapes of 4B and of 8B. The second has the memory of one card with adapters.
        bench 75 $train --scan --model qwen3-4b --batch 8 --accumulate 2 --remat auto
        bench 65 $train --scan --model qwen3-8b --batch 8 --remat auto --lora-rank 16
        # Against transformers with torch.compile, with the memory of both.
        bench 90 $train --scan --model qwen3-1.7b --batch 8 --accumulate 4 --remat dots \
            --peer transformers
        # Share of the bandwidth, prompts' share of the peak, and against a static cache.
        bench 75 $sample --slots 64 --rounds 1 --peer transformers --peer-cache static
        # Trees beside packed rows: one program, which the second finds compiled.
        bench 55 $train --scan --model qwen3-4b --batch 8 --remat mlp --rows trees
        bench 35 $train --scan --model qwen3-4b --batch 8 --remat mlp --rows packed
        bench 35 $sample --slots 256 --rounds 1
        # How long the GPU is busy while real environments answer.
        bench 50 rollout --episodes 256 --slots 256 --steps 12 --rounds 1
        # With more time: whether kernels are right, which forms are fastest, layers unrolled.
        bench 50 kernels --model qwen3-4b
        bench 120 forms --model qwen3-4b --seconds 100
        bench 120 forms --model qwen3-8b --seconds 100
        bench 150 $train --model qwen3-4b --batch 8 --accumulate 2 --remat dots
        bench 140 $train --model qwen3-1.7b --batch 8 --accumulate 4 --remat dots \
            --peer transformers
    }
    [ -z "$missing" ] || printf 'Not measured:\n%s' "$missing"
}

if [ "$dry_run" = yes ]; then
    measure
    exit
fi
if [ -z "${PYTHON:-}" ]; then
    . launch/setup.sh "$(cuda_extra)"
    PYTHON=$venv/bin/python
    ends=$((SECONDS + ${MEASURE_SECONDS:-480}))
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
# Rows of trees and packed rows have one program.
JAX_COMPILATION_CACHE_DIR=$(mktemp -d)
export JAX_COMPILATION_CACHE_DIR
trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT
{
    date -u +%F
    nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || true
    "$PYTHON" -c 'import jax; print(jax.__version__, jax.devices())' || true
    measure
} 2>&1 | tee -a "$out"
