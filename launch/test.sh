#!/usr/bin/env bash
# Sets up .venv with the test requirements, then runs the tests. Arguments go to pytest, e.g. -m "not slow".
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh test
exec "$venv/bin/python" -m pytest "$@"
