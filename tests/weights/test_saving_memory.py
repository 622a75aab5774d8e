import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from weights_memory import CONFIG, PART

from cotjax.model.params import init_params
from cotjax.weights.huggingface import save_hf

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"
)

HERE = Path(__file__).parent


def _environment(devices):
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parent.parent),
        # What is freed goes back to the system, as it does anyway for tensors beyond 32 MB: glibc
        # would keep smaller ones.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_hf(folder, CONFIG, init_params(CONFIG, jax.random.key(0)), max_shard_bytes=PART)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_checkpoint_streams_through_two_tensors(folder, devices, dtype):
    """Loading takes at most the two largest tensors beside the parameters; saving at most a part
    and two tensors.
    """
    assert len(list(folder.glob("model-*-of-*.safetensors"))) == 6
    command = [sys.executable, "-W", "error", HERE / "weights_memory.py", folder, dtype]
    run = subprocess.run(command, capture_output=True, text=True, env=_environment(devices))
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    if dtype == "float32":
        for file in sorted(folder.iterdir()):
            assert (
                folder.with_name(f"float32-{devices}") / file.name
            ).read_bytes() == file.read_bytes(), file.name


def test_two_processes_read_their_parts_and_write_one_model(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, HERE / "weights_two_processes.py", folder, address]
    both = [
        subprocess.Popen(
            [*command, str(process)], stderr=subprocess.PIPE, text=True, env=_environment(devices=2)
        )
        for process in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
    for file in sorted(folder.iterdir()):
        assert (folder.with_name("two processes") / file.name).read_bytes() == file.read_bytes(), (
            file.name
        )
