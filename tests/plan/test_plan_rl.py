"""The phases of `cotjax rl` in a plan: what each holds beside its programs, and what is freed."""

import re
import subprocess

import jax
import pytest
from helpers import tiny
from helpers.planning import CONFIGS, command, compiler, environment

from cotjax.cli.main import main
from cotjax.config import default_config, load_config
from cotjax.model.sharding import MESH_AXES
from cotjax.plan.main import _run_by, changes, model_of
from cotjax.plan.measure import Program
from cotjax.plan.reinforce import freed, reinforces, rl_programs
from cotjax.plan.topology import Topology
from cotjax.train.memory import bytes_a_device
from cotjax.train.optim import configured
from cotjax.train.step import abstract_state

MODEL = tiny.model_config(vocab_size=64, layers=1)
SHIPPED_RL = ("qwen3_4b_grpo_v5e_8x8", "grpo_qwen3_8b_alfworld", "grpo_demo", "rl_keys")


def small_config(**rl):
    config = default_config()
    config.rl.update({"slots": 4, **rl})
    config.train.batch, config.train.row_length = 2, 64
    config.evaluate.max_length = config.data.max_length = 64
    config.evaluate.max_new_tokens, config.evaluate.max_action_tokens = 4, 4
    config.arms = {"grpo": {"label": "GRPO", "advantage": "grpo"}}
    return config


def test_each_phase_holds_what_it_does_not_use_and_lets_go_of_the_rest():
    config = small_config(kl=0.1)
    assert freed(config).endswith("and cache after play; the sums of gradients after the update")
    config.evaluate.halves = True
    programs = list(rl_programs(config, MODEL, tiny.mesh(), tiny.mesh()))
    assert all(isinstance(each, Program) for each in programs)
    phases = {each.name: each for each in programs}
    assert list(phases) == [
        *("rl play, prefill", "rl play, decode", "rl score", "rl micro-batch", "rl update")
    ]
    for each in programs:
        assert sum(each.parts.values()) == pytest.approx(each.peak)
    held = {
        name: {part.removeprefix("held: ") for part in each.parts if part.startswith("held: ")}
        for name, each in phases.items()
    }
    assert held["rl play, decode"] == {
        *("trained parameters", "optimizer", "start (KL)", "other cache")
    }
    assert held["rl score"] == held["rl micro-batch"] == {"optimizer", "start (KL)"}
    assert held["rl update"] == {"start (KL)"}
    playing = phases["rl play, decode"].parts
    assert playing["held: optimizer"] == pytest.approx(2 * playing["held: start (KL)"], rel=0.01)
    assert playing["held: other cache"] == playing["cache"]
    assert freed(config).endswith(
        "the sampler's parameters and 2 caches after play; the sums of gradients after the update"
    )


@pytest.mark.parametrize("name", SHIPPED_RL)
def test_a_shipped_config_of_rl_is_known_as_one_and_can_be_changed(name):
    config = load_config(CONFIGS / f"{name}.py")
    assert reinforces(config) and not reinforces(load_config(CONFIGS / "demo.py"))
    for overrides in changes("rl", config):
        load_config(CONFIGS / f"{name}.py", overrides)


def test_a_study_with_arms_that_play_is_planned_in_both_ways():
    assert _run_by(load_config(CONFIGS / "study_objectives.py")) == ("train", "sampler", "rl")
    assert _run_by(load_config(CONFIGS / "demo.py"))[-1] != "rl"


def test_state_start_and_sums_of_the_shipped_slice_fit_it_by_their_shardings():
    """All that a step keeps or adds up, without activations: under half of a chip."""
    config = load_config(CONFIGS / "qwen3_4b_grpo_v5e_8x8.py")
    topology, model = Topology(config.topology), model_of(config)
    mesh = jax.sharding.AbstractMesh((1, 64, 1), MESH_AXES)
    state = abstract_state(model, configured(config.train, model)[1], mesh)
    held = 3 * bytes_a_device(state.params) + bytes_a_device(state.opt_state)
    assert 0.01 < held / topology.chip.memory < 0.5
    assert config.rl.slots % 16 == 0 and config.train.batch % 64 == 0


def test_without_a_slice_a_plan_is_one_line(capsys, monkeypatch):
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1" if "TPU" in name else "cpu")
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, "localhost" if "HOST" in name else "v5litepod-16")
    assert main(["plan", "--config", str(CONFIGS / "demo.py")]) == 2
    assert "names no slice: give --topology, such as --topology v5e:8x8" in capsys.readouterr().err


@pytest.mark.skipif(compiler() is None, reason="the TPU compiler (libtpu) is not here")
@pytest.mark.slow
def test_the_phases_of_a_small_model_fit_a_slice():
    """The shipped base, on the mesh of two by two chips; the demo's rewards play no part."""
    arguments = [
        *("--config", str(CONFIGS / "grpo_demo.py"), "--config.model.base=package"),
        *("--config.model.compute_dtype=bfloat16", "--config.train.scan_layers=True"),
        *("--topology", "v5e:2x2", "--config.mesh.fsdp=2", "--config.mesh.data=2"),
    ]
    run = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(compiler())
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for phase in ("play, prefill", "play, decode", "score", "micro-batch", "update"):
        assert f"rl {phase}: fits" in run.stdout, run.stdout
    assert "freed between" in run.stdout and "train step" not in run.stdout
    assert re.search(r"held: optimizer [\d.]+ MiB", run.stdout)
