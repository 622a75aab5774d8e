"""The four terms of FRODO, from log-probabilities by target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.errors import UsageError
from cotjax.masking import Role
from cotjax.objectives.frodo import Frodo, frodo_pairs
from cotjax.objectives.named import spec_of
from cotjax.objectives.policy import Policy
from cotjax.objectives.preference import Preference, preference_pairs

R, P, A, C, E = Role.REASONING, Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END
# Two triples in a row, whose sides have different lengths, and one in another row.
ROLES = np.array([[0, R, R, P, A, C, E, R, P, A, A, C, E, R, P, A, C, E, R, A, E, R, A, E, R, A]])
SIDES = np.array([[0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 1, 1, 1, 2, 2, 2, 3, 3]])
PAIRS = np.array([[0] + [1] * 17 + [2] * 8])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def batch_of(drop=False, seed=0):
    rng = np.random.default_rng(seed)
    rows = {
        "roles": np.concatenate([ROLES, ROLES]),
        "sides": np.concatenate([SIDES, np.where(PAIRS == 2, 0, SIDES)]),
        "pairs": np.concatenate([PAIRS, np.where(PAIRS == 2, 0, PAIRS)]),
        "reference": rng.uniform(-3, 0, (2, ROLES.shape[1])),
    }
    rows["weights"] = (rows["sides"] > 0).astype(np.float64)
    if drop:
        rows["weights"] *= rows["roles"] != A
    return {name: jnp.asarray(array) for name, array in rows.items()}, rng.uniform(
        -3, 0, (2, ROLES.shape[1])
    )


def groups(batch, values, roles, side):
    """The values of some roles of a side, of each of the three triples."""
    of = np.isin(np.asarray(batch["roles"]), roles) & (np.asarray(batch["sides"]) == side)
    for row, pair in ((0, 1), (0, 2), (1, 1)):
        yield np.asarray(values)[row][of[row] & (np.asarray(batch["pairs"])[row] == pair)]


def means(batch, values, roles, side):
    return np.array([own.mean() for own in groups(batch, values, roles, side)])


def test_every_term_is_what_the_text_says(float64):
    torch = pytest.importorskip("torch")
    batch, found = batch_of()
    pairs = frodo_pairs(Frodo(margin=0.7), jnp.asarray(found), batch)
    assert {float(pairs[name][1]) for name in ("loss", "lm_loss", "ranking_loss")} == {3.0}
    answer = (P, A, C, E)
    lm, counterfactual = (-means(batch, found, answer, side) for side in (1, 2))
    assert float(pairs["lm_loss"][0]) == pytest.approx(lm.sum())
    assert float(pairs["counterfactual_loss"][0]) == pytest.approx(counterfactual.sum())
    right, led = (torch.tensor(means(batch, found, (A,), side)) for side in (1, 3))
    ranking = torch.nn.MarginRankingLoss(margin=0.7, reduction="sum")(
        right, led, torch.ones_like(right)
    )
    assert float(pairs["ranking_loss"][0]) == pytest.approx(ranking.item())
    assert float(pairs["led"][0]) == pytest.approx((right - led).sum().item())
    reasoning = batch | {"weights": jnp.where(batch["roles"] == R, batch["weights"], 0)}
    dpo = preference_pairs(Preference(), jnp.asarray(found), reasoning)
    assert float(pairs["inference_loss"][0]) == pytest.approx(float(dpo["loss"][0]), rel=1e-12)
    total = sum(
        float(pairs[f"{name}_loss"][0]) for name in ("inference", "lm", "counterfactual", "ranking")
    )
    assert float(pairs["loss"][0]) == pytest.approx(total, rel=1e-12)
    half = frodo_pairs(
        Frodo(lm=0.5, counterfactual=0.0, ranking=2.0, margin=0.7), jnp.asarray(found), batch
    )
    expected = [float(pairs[f"{name}_loss"][0]) for name in ("inference", "lm", "ranking")]
    assert float(half["loss"][0]) == pytest.approx(np.dot(expected, [1, 0.5, 2]), rel=1e-12)


def test_each_tokens_gradient_has_the_sign_of_its_term(float64):
    batch, found = batch_of()

    def gradient(settings):
        def loss(values):
            return frodo_pairs(settings, values, batch)["loss"][0]

        return np.asarray(jax.grad(loss)(jnp.asarray(found)))

    def of(values, roles, side):
        return np.concatenate(list(groups(batch, values, roles, side)))

    whole = gradient(Frodo(margin=9.0))
    # Descent raises the right thought and the right action, and lowers what it must not follow.
    assert (of(whole, (R,), 1) < 0).all() and (of(whole, (R,), 2) > 0).all()
    assert (of(whole, (A,), 1) < 0).all() and (of(whole, (A,), 2) < 0).all()
    assert (of(whole, (A,), 3) > 0).all()
    assert not of(whole, (R,), 3).any() and not whole[np.asarray(batch["sides"]) == 0].any()
    met = gradient(Frodo(margin=0.0, lm=0.0, counterfactual=0.0))
    right, led = (means(batch, found, (A,), side) for side in (1, 3))
    pulls = [own.any() for own in groups(batch, met, (A,), 1)]
    assert pulls == (right < led).tolist(), "a margin that is kept has no gradient"


def test_a_triple_whose_actions_are_dropped_keeps_its_reasoning_alone(float64):
    batch, found = batch_of(drop=True)
    pairs = frodo_pairs(Frodo(), jnp.asarray(found), batch)
    assert float(pairs["ranking_loss"][1]) == 0 and float(pairs["ranking_loss"][0]) == 0
    full = frodo_pairs(Frodo(), jnp.asarray(found), batch_of()[0])
    assert float(pairs["inference_loss"][0]) == float(full["inference_loss"][0])
    answer = -means(batch, found, (P, C, E), 1)
    assert float(pairs["lm_loss"][0]) == pytest.approx(np.nan_to_num(answer).sum())


def test_settings_come_back_from_their_values_and_impossible_ones_are_refused():
    for spec in (Frodo(0.2, lm=0.5), Preference(0.3, True, 0.1), Policy("constant", 9, kl=0.0)):
        assert spec_of(spec.values()) == spec
    cases = [
        (lambda: spec_of({"name": "ppo"}), "unknown objective 'ppo'; there are dpo, frodo, policy"),
        (lambda: Frodo(beta=0), "beta must be more than 0"),
        (lambda: Preference(nll=-1.0), "nll at least 0"),
        (lambda: Policy("mean"), "aggregation is 'mean'; there are token, trajectory, constant"),
        (lambda: Policy("constant"), "'constant' needs what a trajectory counts as"),
        (lambda: Policy(clip=1.5), "clip must be between 0 and 1"),
        (lambda: Policy(dual_clip=1.1), "it must be above 1 \\+ clip_high"),
        (lambda: Policy(truncation=0.5), "they must be at least 0, 0 and 1"),
        (lambda: Policy(kl_estimator="k4"), "kl_estimator is 'k4'"),
    ]
    for make, words in cases:
        with pytest.raises(UsageError, match=words):
            make()
