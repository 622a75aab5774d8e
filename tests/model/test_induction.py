"""A placed induction head recalls before it is trained, and by looking up what followed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.errors import UsageError
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.induction import place_induction_head
from cotjax.model.params import init_params
from cotjax.train.recall import Lesson, repeated_pairs

# The demo's model, with two of its layers.
MODEL = ModelConfig(
    vocab_size=384, width=128, layers=2, heads=4, kv_heads=2, head_size=32, feed_forward=96
)
PAIRS = Lesson(1.0, rows=16, length=96, fewest=2, most=16, tokens=0, learning_rate=0.0)


@pytest.fixture(scope="module")
def params():
    return place_induction_head(MODEL, init_params(MODEL, jax.random.key(0)), jax.random.key(1))


def likeliest(params, ids_BT):
    places_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
    one_BT = jnp.ones_like(ids_BT)
    hidden_BTD = decoder.hidden_states(MODEL, params, ids_BT, places_BT, one_BT, one_BT - 1)
    return np.asarray(decoder.logits(MODEL, params, hidden_BTD).argmax(-1))


def recalled(params):
    ids_BT, told_BT = repeated_pairs(PAIRS, MODEL.vocab_size, jax.random.key(2))
    right_BT = likeliest(params, ids_BT)[:, :-1] == np.asarray(ids_BT)[:, 1:]
    return right_BT[np.asarray(told_BT)[:, 1:]].mean()


def test_it_recalls_without_an_update_and_random_weights_do_not(params):
    assert recalled(params) > 0.9
    assert recalled(init_params(MODEL, jax.random.key(0))) < 0.1


def test_it_copies_what_followed_the_same_token_wherever_that_was(params):
    others = np.random.default_rng(0).permutation(np.arange(10, 380))
    ids_BT = np.stack([others[:60]] * 30)
    for row, place in enumerate(range(1, 59, 2)):
        ids_BT[row, [place, 59]] = 3
    chosen = likeliest(params, jnp.asarray(ids_BT, jnp.int32))[:29, -1]
    assert (chosen == ids_BT[np.arange(29), np.arange(1, 59, 2) + 1]).mean() > 0.9


@pytest.mark.parametrize("layer", ["0", "1"])
def test_both_layers_are_needed(params, layer):
    layers = params["model"]["layers"]
    attention = layers[layer]["self_attn"]
    attention = attention | {"o_proj": jax.tree.map(jnp.zeros_like, attention["o_proj"])}
    without = layers | {layer: layers[layer] | {"self_attn": attention}}
    assert recalled({"model": params["model"] | {"layers": without}}) < 0.2


def test_every_weight_keeps_its_shape_and_type(params):
    like = init_params(MODEL, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
                 params, like)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layers": 1}, "layers is 1"),
        ({"width": 96}, "width is 96"),
        ({"qk_norm": False}, "qk_norm"),
    ],
)
def test_a_model_without_room_for_it_is_refused(change, field):
    with pytest.raises(UsageError, match=rf"model.{field}.*set model.induction to False"):
        place_induction_head(replace(MODEL, **change), {}, jax.random.key(0))
