#!/usr/bin/env bash
# Runs the tests in two processes. Usage: launch/test.sh [--all] [ARGUMENTS OF PYTEST]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh test

# The parity tests compare with transformers on torch. Its CPU build is installed where pip finds
# one on this machine (PIP_FIND_LINKS). From an index pip would download gigabytes for GPUs, so
# without that build these tests are skipped and say so. With torch, the loss mask is also tested
# in transformers' Trainer and TRL, and LoRA adapters in PEFT.
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
has() { "$venv/bin/python" -c "import $1" 2>/dev/null; }
if ! has torch && "${pip[@]}" install --no-index --no-deps "torch>=2.10,<3" 2>/dev/null; then
    "${pip[@]}" install filelock fsspec jinja2 networkx sympy typing-extensions
fi
if has torch && ! has "trl, accelerate, datasets, peft"; then
    "${pip[@]}" install -e ".[trainers]"
fi
# What worlds need. Without it the tests of a world are skipped and say so, as they are without Java.
for world in bfcl scienceworld facts; do launch/worlds.sh "$world" || true; done
# The peer of the search-QA world's retriever. Without it, scores of it that were kept are compared.
has bm25s || "${pip[@]}" install --no-deps "bm25s>=0.3,<0.4" || true
# The TPU compiler of this jax, for the tests of `cotjax plan`. It is installed outside the
# environment, because jax looks for a TPU at every start once libtpu is part of it. Without it
# those tests are skipped and say so.
if [ ! -e "$venv/libtpu" ]; then
    libtpu=$("$venv/bin/python" -c 'import importlib.metadata as m; print(next(
        r.partition(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')
    "${pip[@]}" install --no-deps --target "$venv/libtpu" "$libtpu" || true
fi

# Module fixtures (a trained run, a finished study) are expensive. worksteal gives each process long
# stretches of the tests in their order, so that most modules run in one process.
pytest=("$venv/bin/python" -m pytest -n 2 --dist worksteal)
if [ "${1:-}" != --all ]; then
    exec "${pytest[@]}" -m "not slow" "$@"
fi
shift

# inspect_ai, which reads back the logs that `cotjax export inspect` writes. It brings 48 packages
# that nothing else here needs (a web server, a terminal interface, AWS's client), so it has an
# environment of its own, which sees the packages of the first one and is used by that test alone.
# Without it the test is skipped and says so.
if [ ! -e "$venv/inspect/complete" ]; then
    "$venv/bin/python" -m venv --without-pip --clear "$venv/inspect"
    "$venv/bin/python" -c 'import pathlib, sys, sysconfig
seen = sysconfig.get_path("purelib")
(folder,) = pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages")
(folder / "seen.pth").write_text(f"import site; site.addsitedir({seen!r})\n")' "$venv/inspect"
    inspect=$("$venv/bin/python" -c 'import importlib.metadata as m; print(next(
        r.partition(";")[0] for r in m.requires("cotjax") if r.startswith("inspect_ai")))')
    if "${pip[@]}" --python "$venv/inspect/bin/python" install --no-compile --no-warn-conflicts \
        "$inspect"; then
        touch "$venv/inspect/complete"
    fi
fi

# Rooms with a coverage floor (percent of lines and branches, by the tests named here). Their
# tests run apart, because tracing slows down everything else.
covered=(tests/masking tests/objectives tests/diagnostics tests/rollout/test_record.py)
measured=(cotjax/masking cotjax/objectives cotjax/diagnostics cotjax/rollout)
"${pytest[@]}" "${measured[@]/#/--cov=}" --cov-branch --cov-report= "${covered[@]}" "$@"
floor() {
    echo "coverage of $1, at least $2 %"
    "$venv/bin/python" -m coverage report --include="$1" --fail-under="$2" --precision=1
}
floor 'cotjax/masking/*' 95
floor 'cotjax/objectives/*' 90
floor 'cotjax/diagnostics/statistics.py' 92
floor 'cotjax/rollout/record.py' 85
exec "${pytest[@]}" "${covered[@]/#/--ignore=}" "$@"
