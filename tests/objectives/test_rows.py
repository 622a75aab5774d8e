"""Objectives over a decoder: trees equal single rows, parts the whole, roles get what is due."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.objective_rows import CONFIG, T, made_pairs, pairs, rows, stored, trees, turns

from cotjax.data.pairs import branched
from cotjax.data.rollouts import played_examples
from cotjax.data.tokens import forked_example
from cotjax.masking import Role
from cotjax.model import decoder
from cotjax.model.config import LoRA
from cotjax.model.lora import add
from cotjax.objectives.frodo import Frodo
from cotjax.objectives.policy import Policy, policy_pairs
from cotjax.objectives.preference import Preference, preference_pairs
from cotjax.objectives.scores import log_probs, log_probs_and_entropies, reference_of
from cotjax.train.step import init_state, make_train_step


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def singles(codec):
    """The same episodes, each step with its whole prompt as an example of its own."""
    plays, steps = {}, {"a": 3, "b": 1, "c": 2}
    advantages = {"a": [1.0, -0.5, 0.8], "b": [-1.2], "c": [0.0, 0.6]}
    for seed, (name, count) in enumerate(steps.items()):
        prompt, plays[name] = [], []
        for number, turn in enumerate(turns(codec, count, seed)):
            prompt += turn.prompt
            alone = replace(turn, prompt=tuple(prompt))
            (tree,) = played_examples(codec, name, [alone], [advantages[name][number]], 400)
            # The draws go by the step of the episode.
            steps_of = np.array([number], np.int32)
            plays[name].append(replace(tree, steps=steps_of, first_step=number))
    return rows(plays, steps)


def value_and_gradient(objective, batch):
    def mean(params):
        total, weight = objective(params, batch)["loss"]
        return total / weight

    return jax.jit(jax.value_and_grad(mean))(tiny.params(CONFIG))


def assert_equal(one, other):
    (loss, gradient), (other_loss, other_gradient) = one, other
    np.testing.assert_allclose(loss, other_loss, rtol=2e-5)
    for leaf, twin in zip(*map(jax.tree.leaves, (gradient, other_gradient)), strict=True):
        np.testing.assert_allclose(leaf, twin, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("aggregation", "tokens"), [("token", 0), ("trajectory", 0), ("constant", 50)]
)
def test_a_tree_of_steps_has_the_loss_and_gradient_of_single_rows(codec, aggregation, tokens):
    objective = partial(Policy(aggregation, tokens, kl=0.1).of, CONFIG)
    tree, single = trees(codec), singles(codec)
    assert (tree["segment_ids"] > 0).sum() < (single["segment_ids"] > 0).sum()
    assert (tree["weights"] < tree["kl_weights"]).any()
    assert_equal(value_and_gradient(objective, tree), value_and_gradient(objective, single))


def step(spec, batch, accumulate, **layers):
    mesh, optimizer, params = tiny.mesh(), optax.sgd(1.0), tiny.params(CONFIG)
    with jax.set_mesh(mesh):
        state = init_state(CONFIG, optimizer, params, mesh)
        objective = spec.make(CONFIG, mesh, kernel="xla", **layers)
        take = make_train_step(
            CONFIG, optimizer, state.params, mesh, objective, accumulate, kind=spec.kind
        )
        after, metrics = take(state, batch)
    return metrics, jax.tree.map(np.asarray, after.params)


@pytest.mark.parametrize("kind", ["policy", "preference"])
def test_four_parts_remat_and_scan_give_the_step_of_the_whole(codec, kind):
    spec, batch = {
        "policy": (Policy("trajectory", kl=0.1), trees(codec)),
        "preference": (Preference(nll=0.5), pairs(codec)),
    }[kind]
    one, params = step(spec, batch, 1)
    four, others = step(spec, batch, 4, remat="block", scan=True)
    assert one.keys() == four.keys()
    for name, metric in one.items():
        for value, other in zip(*map(jax.tree.leaves, (metric, four[name])), strict=True):
            np.testing.assert_allclose(value, other, rtol=2e-4, atol=1e-5, err_msg=name)
    for leaf, twin in zip(*map(jax.tree.leaves, (params, others)), strict=True):
        np.testing.assert_allclose(leaf, twin, rtol=1e-3, atol=2e-5)


def test_only_kept_response_tokens_have_a_gradient_and_dropped_ones_keep_their_kl(codec):
    batch = trees(codec)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(*batch["ids"].shape, 64)), jnp.float32)

    def gradient(settings):
        def loss(logits):
            found = jax.nn.log_softmax(logits)
            found = jnp.take_along_axis(found, batch["targets"][..., None], -1)[..., 0]
            # Without clipping and with the batch's own old policy, every ratio is 1.
            of = batch | {"old": jax.lax.stop_gradient(found)}
            return policy_pairs(settings, found, jnp.zeros_like(found), of)["loss"][0]

        return np.abs(np.asarray(jax.grad(loss)(logits))).sum(-1) > 0

    trained = np.asarray(batch["weights"] > 0)
    moved = trained & np.asarray(batch["advantages"] != 0)
    np.testing.assert_array_equal(gradient(Policy(kl=0.0)), moved)
    roles = np.asarray(batch["roles"])
    for role in (Role.PAD, Role.PROMPT, Role.OBSERVATION, Role.END):
        assert not moved[roles == role].any()
    dropped = np.asarray(batch["kl_weights"] > 0) & ~trained
    assert dropped.any() and (roles[dropped] == Role.ACTION).all()
    np.testing.assert_array_equal(gradient(Policy(kl=0.1)), np.asarray(batch["kl_weights"] > 0))


def test_entropies_are_those_of_the_whole_distribution(codec):
    batch, params = trees(codec), tiny.params(CONFIG)
    wanted = batch["kl_weights"] > 0
    found, entropies = jax.jit(partial(log_probs_and_entropies, CONFIG))(params, batch, wanted)
    logits = jax.jit(_logits)(params, batch)
    log_p = jax.nn.log_softmax(logits)
    expected = jnp.where(wanted, -(jnp.exp(log_p) * log_p).sum(-1), 0)
    np.testing.assert_allclose(entropies, expected, rtol=1e-4, atol=1e-6)
    own = jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(found, jnp.where(wanted, own, 0), rtol=1e-4, atol=1e-5)


def _logits(params, batch):
    names = ("ids", "positions", "segment_ids", "branches")
    hidden = decoder.hidden_states(CONFIG, params, *(batch[name] for name in names))
    return decoder.logits(CONFIG, params, hidden)


# ---- preferences


def test_packed_pairs_have_the_loss_and_gradient_of_single_ones(codec):
    made = made_pairs(codec)[:4]
    objective = partial(Preference(nll=0.3).of, CONFIG)
    long = 4 * T
    one = stored([made], long)
    four = stored([[pair] for pair in made])
    assert_equal(value_and_gradient(objective, one), value_and_gradient(objective, four))


def test_equal_sides_give_log_2_and_no_gradient(codec):
    prompt = [(codec.encode("You see a fridge 1."), Role.PROMPT)]
    response = codec.reasoned("i need a plate.", "open cabinet 1")
    pair = branched(forked_example("same", 0, prompt, [response, response]))
    loss, gradient = value_and_gradient(partial(Preference().of, CONFIG), stored([[pair]]))
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-6)


def test_dropped_actions_leave_both_sides_and_both_references(codec):
    made = made_pairs(codec)
    full, dropped = (stored([[pair] for pair in made], fraction=k) for k in (0.0, 1.0))
    rng = np.random.default_rng(0)
    found = jnp.asarray(rng.uniform(-3, 0, full["ids"].shape), jnp.float32)
    action = full["roles"] == Role.ACTION
    other = jnp.where(action, found - 5, found)
    other_reference = jnp.where(action, -9.0, full["reference"])
    pairs = preference_pairs(Preference(), found, dropped)
    same = preference_pairs(Preference(), other, dropped | {"reference": other_reference})
    for name, values in pairs.items():
        jax.tree.map(np.testing.assert_array_equal, values, same[name])
    assert pairs["loss"][0] != preference_pairs(Preference(), found, full)["loss"][0]
    assert pairs["loss"][1] == len(made), "a pair counts whether or not its actions do"


def test_with_lora_the_reference_is_the_base_and_no_copy(codec):
    config, params = add(
        CONFIG, tiny.params(CONFIG), LoRA(2, 4.0, r".*\.q_proj"), jax.random.key(1)
    )
    base, shared = reference_of(config, params)
    assert base == CONFIG
    leaves = {id(leaf) for leaf in jax.tree.leaves(params)}
    assert all(id(leaf) in leaves for leaf in jax.tree.leaves(shared))
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.3 if "lora_B" in str(path) else leaf, params
    )
    batch = pairs(codec)
    wanted = batch["weights"] > 0
    of = {
        name: np.asarray(jax.jit(partial(log_probs, own))(weights, batch, wanted))
        for name, own, weights in (
            ("base", CONFIG, tiny.params(CONFIG)),
            ("reference", *reference_of(config, moved)),
            ("policy", config, moved),
        )
    }
    np.testing.assert_array_equal(of["base"], of["reference"])
    assert np.abs(of["policy"] - of["base"]).max() > 1e-3


def test_a_step_of_frodo_raises_the_right_action_behind_the_right_thought(codec):
    made = made_pairs(codec, triples=True)
    assert made
    batch = stored([[pair] for pair in made])
    params, pairs_of = tiny.params(CONFIG), jax.jit(partial(Frodo().of, CONFIG))
    before = pairs_of(params, batch)
    for spec, lower in (
        (Frodo(beta=1e-3, counterfactual=0.0, ranking=0.0), "lm_loss"),
        (Frodo(beta=1e-3, counterfactual=0.0, lm=0.0), "ranking_loss"),
    ):
        _, gradient = value_and_gradient(partial(spec.of, CONFIG), batch)
        moved = jax.tree.map(lambda leaf, slope: leaf - 0.01 * slope, params, gradient)
        after = pairs_of(moved, batch)
        assert after[lower][0] < before[lower][0], lower
