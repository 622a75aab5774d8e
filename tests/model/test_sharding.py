from types import SimpleNamespace

import jax
import pytest
from helpers import tiny
from helpers.processes import ended, start_process

from cotjax.errors import UsageError
from cotjax.model import platform, sharding
from cotjax.model.params import declared, param_shardings


def test_mesh_takes_what_is_left():
    devices = jax.devices()[:1]
    assert dict(sharding.make_mesh(devices=devices).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"data": 3}, "data 3 x fsdp 1 x tensor 1 = 3 devices, but 1 are there"),
        ({"data": -1, "tensor": -1}, "both data and tensor are -1"),
        ({"fsdp": 0}, "fsdp is 0"),
    ],
)
def test_mesh_errors_name_their_numbers(sizes, words):
    with pytest.raises(UsageError, match=words):
        sharding.make_mesh(**sizes, devices=jax.devices()[:1])


def test_every_parameter_has_a_place():
    config = tiny.model_config(qkv_bias=True, tied_embeddings=False)
    placed = param_shardings(config, sharding.make_mesh(devices=jax.devices()[:1]))
    assert len(jax.tree.leaves(placed)) == len(declared(config))


def test_unknown_axis_and_axis_used_twice_raise_with_both_names():
    with pytest.raises(UsageError, match=r"w has the logical axis 'colour', which matches no rule"):
        sharding.spec(("embed", "colour"), name="w")
    with pytest.raises(
        UsageError, match=r"w uses mesh axis 'tensor' twice, for 'heads' and 'vocab'"
    ):
        sharding.spec(("heads", "vocab"), name="w")


def test_sizes_that_do_not_divide_raise_with_both_numbers():
    four = SimpleNamespace(
        shape={"data": 1, "fsdp": 1, "tensor": 4}
    )  # a mesh's shape is all that is asked of it
    with pytest.raises(
        UsageError, match=r"k_proj has 2 along 'kv_heads', which tensor = 4 devices do not divide"
    ):
        sharding.sharding(four, (32, 2, 8), ("embed", "kv_heads", "head_size"), name="k_proj")


SPLIT = """
import jax
from cotjax.model.platform import split_cpu
split_cpu(2)
there = jax.device_count()
split_cpu(4)
print(there, jax.device_count())
"""


@pytest.mark.parametrize(
    ("named", "counts"),
    [
        ({}, "2 2"),
        ({"JAX_NUM_CPU_DEVICES": "3"}, "3 3"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, "5 5"),
    ],
)
def test_a_cpu_is_split_once_and_as_the_environment_has_it(named, counts):
    """In a process of its own: this one has its devices."""
    ((code, printed, error),) = ended([start_process(["-c", SPLIT], devices=None, **named)])
    assert (code, printed.split()) == (0, counts.split()), error


def test_a_cpu_is_not_split_into_nothing():
    with pytest.raises(UsageError, match="cpu_devices is 0; it must be at least 1"):
        platform.split_cpu(0)
