#!/usr/bin/env bash
# The main job end to end on this machine: sets up .venv, then runs `cotjax demo`. Arguments go to it, e.g. --quick.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh ""
# Measured on a CPU: large pages spare most of the page faults on large temporaries. On other hardware they change nothing.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$venv/bin/cotjax" demo "$@"
