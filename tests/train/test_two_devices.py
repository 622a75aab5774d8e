"""Two devices of a CPU, with what their compiler does wrong by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _run(script: str) -> str:
    """Return what a script of this folder prints in a process with two CPU devices."""
    here = Path(__file__).parent
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(here.parent), str(here.parent.parent)])
    run = subprocess.run(
        [sys.executable, here / script],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.slow
def test_two_devices_train_in_bfloat16_as_one_does():
    """The pass that widens their sums would end the process."""
    _run("two_devices.py")


@pytest.mark.slow
def test_gradients_are_complete_when_they_are_summed():
    """In the order of work that saves memory they are not, and differ from run to run."""
    assert _run("summed_gradients.py") == "different: 0\n"
