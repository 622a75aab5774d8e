"""`cotjax plan`. What needs the TPU compiler runs where libtpu is: in the environment, or beside it
where launch/test.sh puts it.
"""

import importlib.util
import re
import subprocess
from math import prod

import jax
import pytest
from helpers import tiny
from helpers.planning import CONFIGS, SHIPPED, command, compiler, environment, shipped

from cotjax.config import default_config, load_config, sampler_mesh
from cotjax.errors import UsageError
from cotjax.model.params import abstract_params, declared
from cotjax.model.sharding import MESH_AXES, make_mesh
from cotjax.objectives.trigger import Trigger
from cotjax.plan.main import changes, model_of
from cotjax.plan.measure import _NO_ROOM, Program, _amount, replicated, train_program
from cotjax.plan.topology import Topology
from cotjax.train.memory import bytes_a_device
from cotjax.train.optim import configured
from cotjax.train.step import abstract_state

# A plan that compiles in seconds; the larger configs take minutes each.
MODEL = (
    "--config",
    str(CONFIGS / "demo.py"),
    "--config.model.compute_dtype=bfloat16",
    "--config.train.scan_layers=True",
)
SMALL = (*MODEL, "--topology", "v5e:2x2", "--config.mesh.fsdp=2", "--config.mesh.data=2")


def _sizes(data: int, fsdp: int) -> list[str]:
    """Return a mesh, with a batch and slots that it divides."""
    return [
        *(f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}"),
        *("--config.train.batch=32", "--config.evaluate.slots=32"),
    ]


needs_compiler = pytest.mark.skipif(
    compiler() is None, reason="the TPU compiler (libtpu) is not here"
)


def _plan(*arguments: str, compiled: bool = True) -> subprocess.CompletedProcess:
    found = environment(compiler() if compiled else None)
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=found)


_GATHERED = r"fsdp +(collective-permute|all-gather)"  # weights, before a layer


def test_the_step_of_pairs_is_compiled_with_the_fields_of_pairs():
    config = default_config()
    config.train.batch, config.train.row_length = 1, 64
    made = train_program(config, tiny.model_config(), tiny.mesh(), Trigger(0.2))
    assert isinstance(made, Program) and made.peak > 0


@needs_compiler
@pytest.mark.slow
def test_the_train_step_of_a_shipped_config_fits_its_slice():
    run = _plan(*shipped("qwen3_4b_v5e_4x4"), "--only", "train")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "train step: fits" in run.stdout and "DOES NOT FIT" not in run.stdout
    assert re.search(_GATHERED, run.stdout)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        [*MODEL, "--topology", "v5p:2x2x4", *_sizes(data=1, fsdp=16)],
        [*MODEL, "--topology", "v5e:2x2", "--slices", "2", *_sizes(data=2, fsdp=4)],
        [*MODEL, "--topology", "tpu7x:2x2x1", *_sizes(data=1, fsdp=8)],
    ],
    ids=["three axes", "two slices", "two devices a chip"],
)
def test_a_config_fits_a_slice_of_every_kind(arguments):
    run = _plan(*arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    for program in ("train step: fits", "sampler, prefill: fits", "sampler, decode: fits"):
        assert program in run.stdout
    assert "DOES NOT FIT" not in run.stdout and re.search(_GATHERED, run.stdout)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_state_and_gradients_of_a_shipped_config_fit_its_slice(name):
    """By the shardings alone, which need no compiler: a tenth is left for activations."""
    topology, *more = SHIPPED[name]
    slices = int(more[1]) if more else 1
    config = load_config(CONFIGS / f"{name}.py")
    sizes, devices = (
        dict(config.mesh),
        slices * prod(map(int, topology.partition(":")[2].split("x"))),
    )
    others = prod(size for size in sizes.values() if size != -1)
    sizes = {axis: devices // others if size == -1 else size for axis, size in sizes.items()}
    assert prod(sizes.values()) == devices
    mesh = jax.sharding.AbstractMesh(tuple(sizes[axis] for axis in MESH_AXES), MESH_AXES)
    model = model_of(config)
    state = abstract_state(model, configured(config.train, model)[1], mesh)
    held = 2 * bytes_a_device(state.params) + bytes_a_device(state.opt_state)
    assert held < 0.9 * Topology(topology, slices).chip.memory
    docstring = (CONFIGS / f"{name}.py").read_text()
    assert f"--topology {topology}" in docstring, "the docstring names the slice"


@needs_compiler
@pytest.mark.slow
def test_what_does_not_fit_says_so_and_what_would():
    """What every layer keeps of 256 rows is too much for a chip; what it keeps under remat is
    not.
    """
    run = _plan(*SMALL, "--only", "train", "--config.train.batch=1024", "--config.train.remat=none")
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(
        r"train step: DOES NOT FIT \(1\d\.\d+ GiB of 15\.75 GiB a chip\)", run.stdout
    ), run.stdout
    assert "nearest change that fits: --config.train.remat=block" in run.stdout, run.stdout


@needs_compiler
@pytest.mark.slow
def test_the_probes_of_a_small_model_fit_one_chip():
    run = _plan(*MODEL, "--topology", "v6e:1x1", "--only", "probe")
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("attention", "gradient"):
        assert f"probe, {name}: fits" in run.stdout, run.stdout
    assert "train step" not in run.stdout


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 66.40G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (66.40G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_both_ways_in_which_the_compiler_says_no(text):
    assert [_amount(each) for each in _NO_ROOM.search(text).groups()] == [
        66.4 * 2**30,
        15.75 * 2**30,
    ]


@needs_compiler
@pytest.mark.slow
def test_the_plan_of_a_small_model_adds_up():
    run = _plan(*SMALL)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "nothing about speed" in run.stdout
    # The base's parameters are float32 and shared out by two; Adam keeps twice as much.
    sizes = {
        name: float(size)
        for name, size in re.findall(
            r"(parameters|optimizer) ([\d.]+) MiB", run.stdout.split("sampler")[0]
        )
    }
    model = model_of(load_config(CONFIGS / "demo.py"))
    whole = (
        sum(weight.dtype.itemsize * prod(weight.shape) for weight in declared(model).values())
        / 2**20
    )
    assert sizes["parameters"] == pytest.approx(whole / 2, rel=0.03)
    assert sizes["optimizer"] == pytest.approx(2 * sizes["parameters"], rel=0.03)
    assert re.search(r"data +all-reduce", run.stdout), "gradients are added up over data"
    assert "replicated:" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--topology", "h100:8"), "give a generation (v4, v5e, v5p, v6e, tpu7x) and a shape"),
        (("--topology", "v5e"), "give a generation"),
        (("--topology", "v5e:2x2", "--slices", "0"), "slices is 0"),
        (
            ("--topology", "v5e:2x2"),
            "the TPU compiler is not installed here: pip install 'cotjax[plan]'",
        ),
    ],
)
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is part of this environment"
)
def test_what_cannot_be_planned_is_one_line(arguments, words):
    run = _plan("--config", str(CONFIGS / "demo.py"), *arguments, compiled=False)
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert words in run.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--topology", "v5e:5x7"), "topology v5e:5x7"),
        (("--topology", "v5e:2x2", "--config.mesh.data=3"), "4 are there"),
        (("--topology", "v5e:2x2", "--config.train.batch=6"), "train.batch (6) must be a multiple"),
        (
            (
                "--topology",
                "v5e:2x2",
                "--slices",
                "2",
                "--config.mesh.data=1",
                "--config.mesh.fsdp=8",
            ),
            "multiple of the 2 slices",
        ),
        (("--topology", "v5e:2x2", "--config.model.base=qwen3-9b"), "there are qwen3-0.6b"),
        (
            ("--topology", "v5e:2x2", "--config.model.base=random"),
            "its vocabulary is made from data",
        ),
    ],
)
def test_a_config_that_cannot_be_is_one_line(arguments, words):
    run = _plan("--config", str(CONFIGS / "demo.py"), *arguments)
    lines = [line for line in run.stderr.splitlines() if line.startswith("cotjax: ")]
    assert run.returncode == 2 and len(lines) == 1 and words in lines[0], run.stderr


def test_changes_are_overrides_that_the_config_takes():
    for which, least in (("train", 4), ("sampler", 4), ("probe", 2)):
        for config in (
            load_config(CONFIGS / "demo.py"),
            load_config(CONFIGS / "qwen3_32b_two_v5e_16x16.py"),
        ):
            found = list(changes(which, config))
            assert len(found) >= least and len(set(found)) == len(found)
            for overrides in found:
                load_config(CONFIGS / "demo.py", overrides)
    assert ("train.remat=block",) in changes(
        "train", load_config(CONFIGS / "demo.py", ["train.remat=none"])
    )


def test_the_sampler_has_the_training_mesh_or_its_own():
    config = load_config(CONFIGS / "demo.py", ["mesh.fsdp=4"])
    assert sampler_mesh(config) == {"data": -1, "fsdp": 4, "tensor": 1}
    config.evaluate.tensor = 2
    assert sampler_mesh(config) == {"data": -1, "fsdp": 1, "tensor": 2}


def test_a_published_name_is_no_base_to_train_from(tmp_path, capsys):
    from cotjax.cli.main import main

    assert (
        main(
            [
                "train",
                "--config",
                str(CONFIGS / "qwen3_4b_v5e_4x4.py"),
                "--out",
                str(tmp_path / "run"),
                "--config.mesh.fsdp=1",
            ]
        )
        == 2
    )
    assert "--config.model.base=FOLDER" in capsys.readouterr().err


def test_what_is_replicated_is_what_the_mesh_does_not_cut():
    config = model_of(load_config(CONFIGS / "demo.py"))
    assert (
        replicated(abstract_params(config, make_mesh()), make_mesh()) == {}
    )  # one device: one copy
    mesh = make_mesh()
    whole = abstract_params(config, mesh)

    class Wide:
        size = 4

    found = replicated(whole, Wide())
    layers = sum(
        weight.dtype.itemsize * prod(weight.shape)
        for path, weight in declared(config).items()
        if "q_proj" in path
    )
    assert found["model.layers.*.self_attn.q_proj.weight"] == (4, layers)


def test_a_plan_counts_the_float32_copy_of_bfloat16_parameters():
    """The bytes that it tells of the optimizer: 12 a parameter of 2, where float32 ones have 8
    beside 4.
    """
    for dtype, own, kept in (("float32", 4, 8), ("bfloat16", 2, 12)):
        config = load_config(CONFIGS / "demo.py", [f"model.param_dtype={dtype}"])
        model, mesh = model_of(config), make_mesh()
        state = abstract_state(model, configured(config.train, model)[1], mesh)
        parameters = sum(prod(weight.shape) for weight in declared(model).values())
        assert bytes_a_device(state.params) == own * parameters
        assert bytes_a_device(state.opt_state) == pytest.approx(kept * parameters, rel=1e-4)


def test_topologies_by_name():
    assert str(Topology("v5e:16x16", 2)) == "2 x v5e:16x16"
    assert Topology("v5p:4x4x4").chip.memory == 95 * 2**30
    assert Topology("tpu7x:2x2x1").chip.memory == 192 * 2**30
    # A slice of less than a host's 2x2 chips.
    shapes = {"v5e:4x4": (2, 2, 1), "v5p:2x2x4": (2, 2, 1), "v6e:1x1": (1, 1, 1)}
    assert {name: Topology(name).chips_of_a_host for name in shapes} == shapes
    with pytest.raises(UsageError, match="such as v5e:8x8"):
        Topology("v9:2x2")
