#!/usr/bin/env bash
# Runs cotjax on all GPUs of this machine. Usage: launch/gpu.sh [--dry-run] ARGUMENTS (such as demo)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
if [ "${1:-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
[ $# -gt 0 ] || die "nothing to run; try launch/gpu.sh demo"

# jax brings the CUDA version for the driver. One process drives all GPUs.
extra=$(cuda_extra)
if [ "$dry_run" = yes ]; then
    echo ". launch/setup.sh $extra"
    venv=${VENV:-.venv}
else
    . launch/setup.sh "$extra"
fi
run "$venv/bin/cotjax" "$@"
