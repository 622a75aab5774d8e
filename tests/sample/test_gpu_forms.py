"""A sampler with a GPU's or TPU's forms draws what one with a CPU's does (model/platform.py)."""

from dataclasses import replace

import jax
import numpy as np
from helpers import tiny

from cotjax.model import cache_layouts, platform
from cotjax.model.cache_layouts import Pairs, Tokens
from cotjax.model.params import are_fused
from cotjax.sample.buckets import READ_MANY
from cotjax.sample.sampler import Sampler

CONFIG = tiny.model_config(qk_norm=True)


def _played(params):
    """Every kind of call on slots of unequal lengths: ids, and log-probabilities."""
    sampler = Sampler(CONFIG, tiny.mesh(), slots=2, max_length=48, stop=[], pad_id=0, max_new=6)
    sampler.load(params)
    sampler.extend({0: list(range(1, 15)), 1: [7, 8]})
    prompt_actions = sampler.sample({0: [3, 4], 1: []}, max_new=4)
    # The prefix takes the place of the last id, which comes back.
    instead = sampler.sample({0: [9]}, max_new=6, back=1)
    seeds = {0: [1, 2], 1: [3]}
    several = sampler.samples({0: [5], 1: [6]}, max_new=3, temperature=1.0, seeds=seeds)
    branches = sampler.score_branches({1: [4]}, {0: [[1, 2], [1, 3]], 1: [[2], [2, 5]]})
    sampler.extend({0: [20, 21], 1: [22]})
    after = sampler.sample({0: [], 1: [1]}, max_new=6)
    made = [*prompt_actions.values(), *instead.values(), *after.values()]
    made += [each for slot in several.values() for each in slot]
    logprobs = [each.logprobs for each in made]
    logprobs += [branch for slot in branches.values() for branch in slot]
    return sampler, [each.ids for each in made], np.concatenate(logprobs)


def test_texts_and_scores_are_the_same_with_a_gpus_forms(monkeypatch):
    params = jax.tree.map(lambda x: 3 * x, tiny.params(CONFIG))
    _, ids, logprobs = _played(params)
    gpu = replace(platform.FORMS["gpu"], cache_block=16)
    monkeypatch.setattr(platform, "FORMS", {"cpu": gpu})
    sampler, own_ids, own_logprobs = _played(params)
    runner = sampler._runner
    assert isinstance(runner.cache.layout, Tokens) and are_fused(runner.params)
    assert runner.reads == list(READ_MANY)
    assert sampler.compilations <= sampler.compilations_bound
    assert own_ids == ids
    np.testing.assert_allclose(own_logprobs, logprobs, atol=1e-4)


def test_texts_and_scores_are_the_same_with_a_tpus_forms(monkeypatch):
    params = jax.tree.map(lambda x: 3 * x, tiny.params(CONFIG))
    _, ids, logprobs = _played(params)
    tpu = replace(platform.FORMS["tpu"], cache_block=16)
    monkeypatch.setattr(platform, "FORMS", {"cpu": tpu})
    # The kernel itself would want heads of 128 in bfloat16.
    monkeypatch.setattr(cache_layouts, "reads_ragged", lambda config, parts: True)
    sampler, own_ids, own_logprobs = _played(params)
    assert sampler._runner.cache.layout == Pairs(16)
    assert own_ids == ids
    np.testing.assert_allclose(own_logprobs, logprobs, atol=1e-4)
