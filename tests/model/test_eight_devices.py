import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sharded_equals_unsharded():
    """Initial values, hidden states, gradients and sampled text on two meshes of emulated
    devices.
    """
    here = Path(__file__).parent
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    paths = os.pathsep.join([str(here.parent), str(here.parent.parent)])
    run = subprocess.run(
        [sys.executable, "-W", "error", here / "eight_devices.py"],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": paths},
    )
    assert run.returncode == 0, run.stderr
