#!/usr/bin/env bash
# The main job end to end on this machine: sets up .venv, then runs `cotjax demo`. Arguments go to it, e.g. --quick.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh ""
# Measured on a CPU: large pages spare most of the page faults on large temporaries, and XLA's other scheduler keeps fewer of
# them alive. Together they make a train step 1.1 to 1.3 times as fast; on other hardware they change nothing.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export XLA_FLAGS="${XLA_FLAGS:---xla_cpu_enable_concurrency_optimized_scheduler=false}"
exec "$venv/bin/cotjax" demo "$@"
