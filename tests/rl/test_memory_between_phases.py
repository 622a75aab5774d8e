"""What play takes of the devices is theirs again before anything is scored or trained."""

import gc

import jax
import pytest
from helpers import tiny

from cotjax.rl.play import Actors
from cotjax.sample.sampler import Sampler


def _held():
    """Return the bytes of all arrays on the devices."""
    gc.collect()
    return sum(each.nbytes for each in jax.live_arrays())


@pytest.mark.parametrize("halves", [1, 2])
def test_the_samplers_weights_and_caches_are_freed_after_play(halves):
    params = tiny.params()
    sampler = Sampler(
        tiny.model_config(), tiny.mesh(), slots=2, max_length=48, stop=[], pad_id=0, max_new=4
    )
    actors = Actors(sampler, [[]] * halves, None, None, ())
    sampler.unload()  # it has a cache as soon as it is made
    before = _held()
    for _ in range(2):
        with actors.playing(params) as playing:
            assert len(playing) == halves
            for policy, _ in playing:
                policy.extend({0: [1, 2, 3], 1: [4]})
            caches = sum(
                each.nbytes
                for policy, _ in playing
                for each in (*policy._runner.cache.keys, *policy._runner.cache.values)
            )
            assert caches > 0 and _held() >= before + caches
        del playing, policy
        assert _held() <= before + 64, "but for a number or two"
