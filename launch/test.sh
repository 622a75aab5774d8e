#!/usr/bin/env bash
# Sets up .venv with the test requirements, then runs the tests. Arguments go to pytest, e.g. -m "not slow".
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh test

# The parity tests compare with transformers on torch. Its CPU build is taken where pip finds one on this machine
# (PIP_FIND_LINKS); from an index pip would fetch gigabytes for GPUs, so without it those tests are skipped and say so. Where torch
# is, the loss mask is tested in transformers' Trainer and in TRL too, and LoRA's adapters in PEFT.
if ! "$venv/bin/python" -c "import torch" 2>/dev/null &&
    "$venv/bin/python" -m pip install --quiet --no-index --no-deps "torch>=2.10,<3" 2>/dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check filelock fsspec jinja2 networkx sympy typing-extensions
fi
if "$venv/bin/python" -c "import torch" 2>/dev/null && ! "$venv/bin/python" -c "import trl, accelerate, datasets, peft" 2>/dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[trainers]"
fi
# The TPU compiler that goes with this jax, for the tests of `cotjax plan`. It lies beside the environment, because jax looks for a
# TPU at every start once it is part of it. Where it cannot be had, those tests are skipped and say so.
if [ ! -e "$venv/libtpu" ]; then
    libtpu=$("$venv/bin/python" -c 'import importlib.metadata as m; print(next(
        r.partition(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$venv/libtpu" "$libtpu" || true
fi
exec "$venv/bin/python" -m pytest "$@"
