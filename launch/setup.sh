# shellcheck shell=bash
# Sourced by the other scripts: makes .venv once, and installs cotjax into it when its
# requirements changed.
# Usage: . launch/setup.sh EXTRA [BUNDLE]
# EXTRA is empty, or an extra of pyproject.toml. BUNDLE is a folder of launch/bundle.sh, for a
# machine without a package index (default: $COTJAX_BUNDLE).
set -euo pipefail
. launch/common.sh

extra=${1:-}
bundle=${2:-${COTJAX_BUNDLE:-}}
python=${PYTHON:-python3}
venv=${VENV:-.venv}

if [ -n "$bundle" ]; then
    # Its wheels are for one version of Python.
    wanted=$(sed -n 's/^ *"python": "\(.*\)",*$/\1/p' "$bundle"/{manifest,parts}.json 2>/dev/null |
        head -n 1) || true
    if [ -z "${PYTHON:-}" ] && [ -n "$wanted" ] && "python$wanted" -c '' 2>/dev/null; then
        python=python$wanted
    fi
fi
need_venv "$python"
requirements=$(cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
stamp="$venv/.cotjax-$extra-$requirements"
if [ -n "$bundle" ]; then
    "$python" launch/bundle join "$bundle" || exit 2
    stamp+=-$(cksum <"$bundle/manifest.json" | cut -d' ' -f1)
fi
if [ ! -e "$stamp" ]; then
    [ -n "$bundle" ] || need_compiler
    echo "Setting up $venv with $("$python" --version) (a few minutes the first time)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    if [ -n "$bundle" ]; then
        "$venv/bin/python" launch/bundle install "$bundle" --extra "$extra" --python "$python" ||
            exit 2
        # Without --bundle, too, there is nothing left to install.
        touch "$venv/.cotjax-$extra-$requirements"
    else
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
            -e ".${extra:+[$extra]}" |
            sed -un 's/^ *\(\(Collecting\|Building\|Installing\|Successfully\) .\{0,90\}\).*/  \1/p'
    fi
    touch "$stamp"
fi
