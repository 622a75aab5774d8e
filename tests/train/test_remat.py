"""`train.remat = "auto"`: chosen by the bytes that each policy keeps."""

from functools import partial

import jax
import pytest
from helpers import tiny

from cotjax.model.layers import REMAT
from cotjax.model.sharding import make_mesh
from cotjax.objectives.supervised import make_objective
from cotjax.train import remat
from cotjax.train.memory import bytes_a_device, kept_bytes
from cotjax.train.optim import make_optimizer
from cotjax.train.step import abstract_state

CONFIG = tiny.model_config()
KEPT = {"none": 100e6, "dots": 40e6, "mlp": 20e6, "block": 5e6}  # bytes a row, planted


@pytest.fixture
def state():
    mesh = make_mesh(devices=jax.devices()[:1])
    settings = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 0.0}
    return abstract_state(CONFIG, make_optimizer(lambda _: 1e-3, **settings), mesh)


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(remat, "kept_bytes", lambda name, *_: KEPT[name])
    monkeypatch.setattr(remat, "platform_of", lambda mesh: "gpu")


def _chosen(state, available, sums=False, scan=False):
    """The choice for one row of 64 tokens."""
    mesh = make_mesh(devices=jax.devices()[:1])
    how = {"batch": 1, "length": 64, "sums": sums, "scan": scan}
    return remat.least_remat(CONFIG, state, lambda n: n, mesh=mesh, available=available, **how)


def _enough_for(name, state):
    """The memory of a device that has just enough for it."""
    beside = bytes_a_device(state) + bytes_a_device(state.params)  # and gradients
    loss = 64 * CONFIG.vocab_size * 8 + 4 * CONFIG.vocab_size * CONFIG.width
    return (beside + loss + 2 * KEPT["none"] / CONFIG.layers + KEPT[name]) / 0.95 + 1


def test_policies_keep_less_from_one_to_the_next(state):
    make = partial(make_objective, CONFIG, make_mesh(devices=jax.devices()[:1]), kernel="xla")
    kept = [kept_bytes(make(remat=name), state.params, 64) for name in REMAT]
    assert kept == sorted(kept, reverse=True) and kept[0] > 2 * kept[-1]


@pytest.mark.parametrize("taken", ["none", "dots", "mlp"])
def test_the_least_that_fits_is_taken(state, planted, taken):
    name, line = _chosen(state, _enough_for(taken, state))
    assert name == taken and line.count("would take") == list(REMAT).index(taken)
    assert _chosen(state, _enough_for(taken, state) - 20)[0] != taken


@pytest.mark.parametrize("more", [{"sums": True}, {"scan": True}])
def test_sums_of_gradients_and_stacked_weights_take_from_what_there_is(state, planted, more):
    enough = _enough_for("mlp", state)
    assert _chosen(state, enough, **more)[0] == "block"
    assert _chosen(state, enough + bytes_a_device(state.params) / 0.95, **more)[0] == "mlp"


def test_where_none_fits_the_last_is_taken(state, planted):
    assert _chosen(state, 1e6)[0] == "block"


def test_a_cpu_moves_no_element_wise_results_and_unknown_memory_keeps_least(state, monkeypatch):
    monkeypatch.setattr(remat, "kept_bytes", lambda name, *_: KEPT[name])
    assert _chosen(state, 2**40)[0] == "dots"
    assert _chosen(state, None)[0] == "block"
