import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from weights_memory import CONFIG, PART

from cotjax.model import decoder
from cotjax.model.weights import save_hf

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_hf(folder, CONFIG, decoder.init_params(CONFIG, jax.random.key(0)), max_shard_bytes=PART)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_checkpoint_streams_through_two_tensors(folder, devices, dtype):
    """Loading takes at most the two largest tensors beside the parameters; saving at most a part and two tensors."""
    assert len(list(folder.glob("model-*-of-*.safetensors"))) == 6
    here = Path(__file__).parent
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(here.parent.parent),
        # What is freed goes back to the system, as it does anyway for tensors beyond 32 MB: glibc would keep smaller ones.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-W", "error", here / "weights_memory.py", folder, dtype]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    if dtype == "float32":
        for file in sorted(folder.iterdir()):
            assert (folder.with_name(f"float32-{devices}") / file.name).read_bytes() == file.read_bytes(), file.name
