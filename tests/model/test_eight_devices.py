import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sharded_equals_unsharded():
    """Initial values, hidden states, gradients and sampled text on three meshes of emulated devices."""
    here = Path(__file__).parent
    program = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import runpy; runpy.run_path({str(here / 'eight_devices.py')!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=here.parent.parent)
    assert run.returncode == 0, run.stderr
