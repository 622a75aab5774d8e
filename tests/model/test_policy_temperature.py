"""A model's own temperature: the policy of its logits over it, wherever it is sampled or scored."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.errors import UsageError
from cotjax.model import decoder
from cotjax.sample.sampler import Sampler

PLAIN = tiny.model_config()
SHARP = replace(PLAIN, temperature=0.6)


def logits(model, ids_T, **how):
    """Return the logits [T, V] of one text."""
    ids_BT = jnp.asarray([ids_T])
    places = jnp.arange(len(ids_T))[None], jnp.ones_like(ids_BT), jnp.zeros_like(ids_BT)
    hidden_BTD = decoder.hidden_states(model, tiny.params(), ids_BT, *places, **how)
    return np.asarray(decoder.logits(model, tiny.params(), hidden_BTD)[0])


@pytest.mark.parametrize("scan", [False, True])
def test_the_logits_are_divided_by_it(scan):
    ids_T = np.random.default_rng(0).integers(0, PLAIN.vocab_size, 24).tolist()
    plain, sharp = (logits(model, ids_T, scan=scan) for model in (PLAIN, SHARP))
    np.testing.assert_allclose(sharp, plain / 0.6, rtol=1e-4, atol=1e-5)


def test_what_is_drawn_has_the_probabilities_of_the_policy_that_is_trained():
    sampler = Sampler(SHARP, tiny.mesh(), slots=1, max_length=128, stop=[], pad_id=0)
    sampler.load(tiny.params())
    prompt = [3, 7, 5]
    sampler.extend({0: prompt})
    made = sampler.sample({0: []}, max_new=12, temperature=1.0, seeds={0: 4})[0]
    after_TV = jax.nn.log_softmax(logits(PLAIN, [*prompt, *made.ids]) / 0.6)
    places = np.arange(len(made.ids)) + len(prompt) - 1
    np.testing.assert_allclose(made.logprobs, after_TV[places, list(made.ids)], atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_it_is_a_finite_number_above_0(value):
    with pytest.raises(UsageError, match="temperature is"):
        replace(PLAIN, temperature=value)
