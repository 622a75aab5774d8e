#!/usr/bin/env bash
# The main job end to end on this machine: sets up .venv, then runs `cotjax demo`. Arguments go to it, e.g. --quick.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh ""
exec "$venv/bin/cotjax" demo "$@"
