"""bfloat16 trains on several devices of a CPU, whose compiler must not widen their sums."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_devices_train_as_one_does():
    here = Path(__file__).parent
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(here.parent), str(here.parent.parent)])
    run = subprocess.run(
        [sys.executable, here / "two_devices.py"],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr[-2000:]
