"""What a run needs is told before its first update, and where it is too much, with both numbers."""

import jax
import pytest
from helpers import tiny, training

from cotjax.config import default_config
from cotjax.objectives.supervised import make_objective
from cotjax.study.memory import playing_memory
from cotjax.train.memory import bytes_a_device, memory_here, memory_lines, peak_bytes
from cotjax.train.optim import configured
from cotjax.train.step import abstract_batch, abstract_state, compiled, make_train_step


def state_of(model):
    _, optimizer = configured(training.settings(), model)
    return optimizer, abstract_state(model, optimizer, tiny.mesh())


def test_the_peak_is_that_of_the_compiled_step():
    model, mesh = training.MODEL, tiny.mesh()
    optimizer, state = state_of(model)
    step = make_train_step(model, optimizer, state.params, mesh, make_objective(model, mesh))
    peak = peak_bytes(compiled(step, state, abstract_batch(8, 128, mesh), mesh), "cpu")
    held = bytes_a_device(state.params) + bytes_a_device(state.opt_state)
    # The state, a gradient, and at least the hidden states of every layer.
    assert peak > held + bytes_a_device(state.params) + 4 * 8 * 128 * model.width * model.layers
    assert peak < memory_here(mesh)


def test_the_line_names_the_parts_and_the_warning_both_numbers():
    _, state = state_of(training.MODEL)
    line, warning = memory_lines(5 * 10**9, state.params, state.opt_state, 24 * 10**9, 1)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) * 4 / 1e6
    assert warning is None and line.startswith(
        f"memory: a step needs 5.00 GB of 24.00 GB: parameters {parameters:.0f} MB, optimizer "
    )
    _, warning = memory_lines(15 * 10**9, state.params, state.opt_state, 12 * 10**9, 2)
    assert warning.startswith("a step needs 30.00 GB of memory, and there are 24.00 GB: raise ")
    line, warning = memory_lines(5 * 10**9, state.params, state.opt_state, None, 1)
    assert warning is None and "a step needs 5.00 GB: parameters" in line


def test_a_run_says_it(tmp_path):
    said = []
    (tmp_path / "data").mkdir()
    source = training.make_source(tmp_path / "data")
    training.run(tmp_path / "arm", source, say=said.append, steps=12)
    assert sum(line.startswith("memory: a step needs ") for line in said) == 1


def test_playing_needs_the_parameters_and_the_cache():
    config = default_config()
    config.evaluate.slots, config.evaluate.max_length = 40, 2048
    model = tiny.model_config(layers=2, kv_heads=2, head_size=8)
    # 2 layers x keys and values x 2 heads of 8 x 4 bytes, and what the cache keeps of a response.
    cache = 40 * 2048 * 2 * 2 * 2 * 8 * 4
    line = playing_memory(config, model)
    assert "the cache of 40 slots of 2,048 tokens" in line
    assert float(line.split()[-2]) == pytest.approx(cache / 1e6, rel=0.1)
