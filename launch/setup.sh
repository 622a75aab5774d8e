# shellcheck shell=bash
# Sourced by the other scripts: makes .venv once, and installs cotjax into it when its
# requirements changed.
# Usage: . launch/setup.sh EXTRA   (EXTRA: empty, or an extra of pyproject.toml)

extra=${1:-}
python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" - <<'CHECK' || exit 2
import sys
if sys.version_info < (3, 11):
    version = sys.version.split()[0]
    sys.exit(f"cotjax needs Python 3.11 or newer, not {version}: set PYTHON=/path/to/python3.11")
CHECK
if ! "$python" -c "import venv, ensurepip" 2>/dev/null; then
    echo "cotjax needs Python's venv module (Debian: apt-get install python3-venv)" >&2
    exit 2
fi

stamp="$venv/.cotjax-$extra-$(cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
    for tool in cmake make g++; do
        if ! command -v "$tool" >/dev/null; then
            echo "alfworld builds its engine from source and needs $tool" \
                "(Debian: apt-get install cmake make g++)" >&2
            exit 2
        fi
    done
    echo "Setting up $venv with $("$python" --version) (a few minutes the first time)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -e ".${extra:+[$extra]}" |
        sed -un 's/^ *\(\(Collecting\|Building\|Installing\|Successfully\) .\{0,90\}\).*/  \1/p'
    touch "$stamp"
fi
