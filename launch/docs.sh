#!/usr/bin/env bash
# Builds the documentation into site/ and fails on any warning. `launch/docs.sh serve` serves it
# instead.
set -euo pipefail
export NO_MKDOCS_2_WARNING=1
cd "$(dirname "$0")/.."
. launch/setup.sh docs
if [ "${1:-}" = serve ]; then
    exec "$venv/bin/python" -m mkdocs serve "${@:2}"
fi
exec "$venv/bin/python" -m mkdocs build --strict --quiet "$@"
