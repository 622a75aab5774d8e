#!/usr/bin/env bash
# Sets up .venv, then runs `cotjax demo` on this machine. Arguments go to it, such as --full.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh ""
# On a CPU, large pages avoid most page faults on large temporaries. On other hardware they change
# nothing.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$venv/bin/cotjax" demo "$@"
