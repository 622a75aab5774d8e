"""`train.remat = "auto"` in a plan is what training would take on those devices."""

import jax
import pytest
from helpers import tiny
from rich.console import Console

from cotjax.config import default_config
from cotjax.model.sharding import make_mesh
from cotjax.plan.main import _with_remat


@pytest.mark.parametrize("which", ["train", "rl"])
def test_auto_is_settled_by_the_devices_memory(which, capsys):
    config = default_config()
    config.train.update({"remat": "auto", "batch": 4, "row_length": 64})
    meshes = {which: make_mesh(devices=jax.devices()[:1])}
    model, console = tiny.model_config(), Console(width=200)
    # On a CPU the first is "dots".
    assert _with_remat(config, model, meshes, 2**40, console).train.remat == "dots"
    assert _with_remat(config, model, meshes, 1.0, console).train.remat == "block"
    assert config.train.remat == "auto", "the config itself is left alone"
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("remat: dots (auto)") and "dots would take" in second


def test_a_named_remat_is_kept():
    config = default_config()
    assert _with_remat(config, None, {}, 1.0, Console()) is config
