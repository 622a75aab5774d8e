#!/usr/bin/env bash
# Runs cotjax on all GPUs of this machine.
#
#   launch/gpu.sh [--dry-run] [--bundle FOLDER] ARGUMENTS       run `cotjax ARGUMENTS`, such as demo
#
# With --bundle, cotjax is installed from a folder of launch/bundle.sh, without a package index.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR
. launch/common.sh
bundle=${COTJAX_BUNDLE:-}
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --help | -h) sed -n '2,6p' launch/gpu.sh && exit 0 ;;
        --bundle)
            bundle=$(value_of "$@")
            bundle=$(absolute "$bundle" "$here")
            shift
            ;;
        *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || die "nothing to run; try launch/gpu.sh demo"
need_bundle "$bundle"

# jax brings the CUDA version for the driver. One process drives all GPUs.
extra=$(cuda_extra)
setup "$extra" "$bundle"
run "$venv/bin/cotjax" "$@"
