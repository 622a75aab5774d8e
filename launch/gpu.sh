#!/usr/bin/env bash
# Runs cotjax on all GPUs of this machine: launch/gpu.sh [--dry-run] ARGUMENTS, e.g. launch/gpu.sh demo
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
if [ "${1:-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
[ $# -gt 0 ] || die "nothing to run; try launch/gpu.sh demo"

# The CUDA that goes with the driver comes with jax; one process drives all GPUs.
extra=$(cuda_extra)
if [ "$dry_run" = yes ]; then
    echo ". launch/setup.sh $extra"
    venv=${VENV:-.venv}
else
    . launch/setup.sh "$extra"
fi
run "$venv/bin/cotjax" "$@"
