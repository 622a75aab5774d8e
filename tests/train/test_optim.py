import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.errors import UsageError
from cotjax.train.optim import learning_rate_schedule, make_optimizer

PARAMS = {"matrix": jnp.ones((3, 3)), "scale": jnp.ones(3)}
GRADS = {"matrix": jnp.full((3, 3), 0.1), "scale": jnp.full(3, 0.1)}


def _update(**changes):
    settings = {"b1": 0.9, "b2": 0.98, "weight_decay": 0.0, "clip_norm": 0.0} | changes
    optimizer = make_optimizer(lambda step: 0.01, **settings)
    return optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)[0]


def test_vectors_move_by_their_own_rate_and_matrices_do_not():
    plain, faster = _update(), _update(vector_rate=10.0)
    np.testing.assert_allclose(faster["scale"], 10 * plain["scale"], rtol=1e-6)
    np.testing.assert_array_equal(faster["matrix"], plain["matrix"])


def test_weight_decay_spares_vectors():
    plain, decayed = _update(), _update(weight_decay=0.1)
    np.testing.assert_array_equal(decayed["scale"], plain["scale"])
    assert (decayed["matrix"] < plain["matrix"]).all()


def test_the_schedule_warms_up_and_ends_at_a_tenth():
    for name, middle in (("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)):
        schedule = learning_rate_schedule(peak=1.0, steps=110, warmup=10, schedule=name)
        assert float(schedule(0)) == 0.0 and float(schedule(5)) == pytest.approx(0.5) and float(schedule(10)) == pytest.approx(1.0)
        assert float(schedule(60)) == pytest.approx(middle, abs=0.01)
        assert float(schedule(110)) == pytest.approx(1.0 if name == "constant" else 0.1, abs=1e-6)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(UsageError, match=r"train\.warmup"):
        learning_rate_schedule(peak=1.0, steps=10, warmup=10, schedule="cosine")
