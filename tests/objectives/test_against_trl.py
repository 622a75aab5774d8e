"""Losses and gradients equal those of TRL's trainers, for the same logits, in float64."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.objectives.policy import Policy, policy_pairs
from cotjax.objectives.preference import Preference, preference_pairs
from cotjax.objectives.trigger import Trigger, trigger_pairs

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="TRL is a test extra")

ROWS, LENGTH, VOCABULARY = 6, 7, 11
CONSTANT = 9
# TRL's loss -> our aggregation, and the tokens of a trajectory.
LOSSES = {
    "grpo": ("trajectory", 0),
    "bnpo": ("token", 0),
    "dapo": ("token", 0),
    "dr_grpo": ("constant", CONSTANT),
}


def identity():
    return SimpleNamespace(
        num_processes=1,
        device="cpu",
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )


def as_torch(array):
    return torch.tensor(np.asarray(array))


@pytest.fixture(scope="module")
def sampled():
    """Logits, ids, and what was sampled: with ratios inside and outside of the clip's interval."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(ROWS, LENGTH, VOCABULARY))
    ids = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    lengths = np.array([7, 3, 5, 1, 6, 4])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.float64)
    mask[0, 2] = mask[4, 3] = 0  # a tool's text within a response
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs = np.take_along_axis(log_probs, ids[..., None], -1)[..., 0]
    return {
        "logits": logits,
        "ids": ids,
        "mask": mask,
        "old": log_probs + rng.normal(size=ids.shape) * 0.5,
        "reference": log_probs + rng.normal(size=ids.shape) * 0.3,
        "importance": np.minimum(np.exp(rng.normal(size=ids.shape)), 2.0),
        "advantages": np.array([1.0, -0.7, 0.3, -1.2, 0.0, 0.6]),
    }


def trl_grpo(sampled, loss_type, *, beta, high, delta, importance, entropy=0.0):
    from trl import GRPOTrainer

    logits = as_torch(sampled["logits"]).requires_grad_()
    ids, mask = as_torch(sampled["ids"]), as_torch(sampled["mask"])

    def scores(*_, **__):
        log_probs = logits.log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, ids[..., None])[..., 0], entropies, None

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=scores,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=high,
        loss_type=loss_type,
        use_vllm=importance,
        vllm_importance_sampling_correction=importance,
        max_completion_length=CONSTANT,
        current_gradient_accumulation_steps=1,
        accelerator=identity(),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1),
        _entropy_bonus_enabled=entropy > 0,
        entropy_coef=entropy,
        use_adaptive_entropy=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1),
        "completion_ids": ids,
        "completion_mask": torch.ones(ROWS, LENGTH),
        "tool_mask": mask,
        "advantages": as_torch(sampled["advantages"]),
        "old_per_token_logps": as_torch(sampled["old"]),
        "ref_per_token_logps": as_torch(sampled["reference"]),
        "importance_sampling_ratio": as_torch(sampled["importance"]),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), logits.grad.numpy(), trainer._metrics["train"]


def our_policy(sampled, settings, *, importance):
    mask = sampled["mask"]
    batch = {
        "weights": mask,
        "kl_weights": mask,
        "advantages": np.broadcast_to(sampled["advantages"][:, None], mask.shape),
        "old": sampled["old"],
        "sampler": sampled["old"] - (np.log(sampled["importance"]) if importance else 0.0),
        "reference": sampled["reference"],
        "lengths": np.broadcast_to(mask.sum(-1, keepdims=True), mask.shape),
        "trajectories": np.ones((ROWS, 1)),
        "budget": mask.sum(-1, keepdims=True),
        "roles": np.full(mask.shape, 3, np.int8),
    }

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        entropies = -(jnp.exp(log_probs) * log_probs).sum(-1)
        log_probs = jnp.take_along_axis(log_probs, sampled["ids"][..., None], -1)[..., 0]
        pairs = policy_pairs(settings, log_probs, entropies, jax.tree.map(jnp.asarray, batch))
        return pairs["loss"][0] / pairs["loss"][1], pairs

    (value, pairs), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(sampled["logits"])
    )
    return float(value), np.asarray(gradient), pairs


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize(
    ("beta", "high", "delta", "importance"),
    [
        (0.0, 0.2, None, False),
        (0.05, 0.28, None, False),
        (0.0, 0.2, 1.5, True),
        (0.1, 0.28, 1.4, True),
    ],
)
def test_the_policy_gradient_is_trls(sampled, loss_type, beta, high, delta, importance):
    aggregation, tokens = LOSSES[loss_type]
    settings = Policy(
        aggregation,
        tokens,
        clip_high=high,
        dual_clip=delta,
        kl=beta,
        kl_estimator="k3",
        truncation=2.0 + 1e-9,
    )
    theirs, their_gradient, metrics = trl_grpo(
        sampled, loss_type, beta=beta, high=high, delta=delta, importance=importance
    )
    with jax.enable_x64(True):
        ours, gradient, pairs = our_policy(sampled, settings, importance=importance)
    assert ours == pytest.approx(theirs, rel=1e-12)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-10, atol=1e-14)
    names = {"entropy": "entropy", "clip_low": "clip_ratio/low_mean"}
    names |= {"kl": "kl"} if beta else {}
    # With `delta` TRL counts the ratio after it was cut.
    for ours_name, name in names.items():
        total, weight = map(float, pairs[ours_name])
        assert total / weight == pytest.approx(metrics[name][0], rel=1e-6), name


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_the_entropy_bonus_is_trls_where_the_loss_is_a_mean_over_tokens(sampled, loss_type):
    case = {"beta": 0.05, "high": 0.28, "delta": None, "importance": True}
    theirs, their_gradient, _ = trl_grpo(sampled, loss_type, entropy=0.3, **case)
    settings = Policy(
        clip_high=0.28, kl=0.05, kl_estimator="k3", entropy=0.3, truncation=2.0 + 1e-9
    )
    with jax.enable_x64(True):
        ours, gradient, _ = our_policy(sampled, settings, importance=True)
        plain, _, _ = our_policy(sampled, replace(settings, entropy=0.0), importance=True)
    assert ours == pytest.approx(theirs, rel=1e-12) and ours < plain
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-10, atol=1e-14)


def test_the_cases_reach_both_ends_of_the_clip_and_the_cut(sampled):
    with jax.enable_x64(True):
        _, _, pairs = our_policy(sampled, Policy(dual_clip=1.4), importance=True)
    assert all(float(pairs[name][0]) > 0 for name in ("clip_low", "clip_high"))
    assert float(pairs["most_ratio_up"][0]) > np.log(1.4)


# ---- DPO


@pytest.fixture(scope="module")
def compared():
    """Three pairs: rows 0-2 are chosen, 3-5 rejected; each a prompt of two ids and a response."""
    rng = np.random.default_rng(1)
    lengths = np.array([5, 2, 4, 3, 6, 1])
    place = np.arange(LENGTH + 1)
    return {
        "logits": rng.normal(size=(ROWS, LENGTH + 1, VOCABULARY)) * 2,
        "ids": rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)),
        "mask": ((place >= 2) & (place < 2 + lengths[:, None])).astype(np.int64),
        "reference": rng.normal(size=ROWS) - 5,
    }


def trl_dpo(compared, loss_types, weights, beta):
    from trl import DPOTrainer

    logits = as_torch(compared["logits"]).requires_grad_()
    ids, mask = as_torch(compared["ids"]), as_torch(compared["mask"])

    def model(**_):
        log_probs = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs * mask[:, 1:],
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=identity(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=weights,
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": defaultdict(list)},
    )
    half = len(ids) // 2
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": mask,
        "ref_chosen_logps": as_torch(compared["reference"][:half]),
        "ref_rejected_logps": as_torch(compared["reference"][half:]),
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    loss.backward()
    return loss.item(), logits.grad.numpy(), trainer._metrics["train"]


def our_dpo(compared, settings, pairs_of=preference_pairs):
    """A row holds one pair: the chosen response's targets, then the rejected one's."""
    half, mask = len(compared["ids"]) // 2, compared["mask"][:, 1:].astype(np.float64)
    sides = np.concatenate([np.full((half, LENGTH), 1), np.full((half, LENGTH), 2)], axis=1)
    # The reference's sum is split over the response's tokens.
    reference = mask / mask.sum(-1, keepdims=True) * compared["reference"][:, None]

    def in_rows(array):
        return np.concatenate([array[:half], array[half:]], axis=1)

    weights = in_rows(mask)
    batch = {
        "weights": weights,
        "pairs": np.ones((half, 2 * LENGTH), np.int32),
        "sides": sides.astype(np.int8),
        "reference": in_rows(reference),
        "roles": np.full(weights.shape, 3, np.int8),
    }

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)[:, :-1]
        log_probs = jnp.take_along_axis(log_probs, compared["ids"][:, 1:, None], -1)[..., 0]
        log_probs = jnp.concatenate([log_probs[:half], log_probs[half:]], axis=1)
        pairs = pairs_of(settings, log_probs, jax.tree.map(jnp.asarray, batch))
        return pairs["loss"][0] / pairs["loss"][1], pairs

    (value, pairs), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.asarray(compared["logits"])
    )
    return float(value), np.asarray(gradient), pairs


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm"])
def test_dpo_is_trls(compared, loss_type, beta):
    settings = Preference(beta, length_normalised=loss_type == "sigmoid_norm")
    theirs, their_gradient, metrics = trl_dpo(compared, [loss_type], [1.0], beta)
    with jax.enable_x64(True):
        ours, gradient, pairs = our_dpo(compared, settings)
    assert ours == pytest.approx(theirs, rel=1e-12)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-10, atol=1e-14)
    names = {"chosen_log_prob": "logps/chosen", "rejected_log_prob": "logps/rejected"}
    if loss_type == "sigmoid":
        names |= {"chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected"}
        names |= {"margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    for name, their_name in names.items():
        total, weight = map(float, pairs[name])
        assert total / weight == pytest.approx(metrics[their_name][0], rel=1e-6), name


def test_the_nll_term_is_the_mean_over_pairs_of_the_chosen_tokens_mean(compared):
    with jax.enable_x64(True):
        plain, _, pairs = our_dpo(compared, Preference())
        more, _, _ = our_dpo(compared, Preference(nll=2.0))
    log_probs = compared["logits"] - np.log(np.exp(compared["logits"]).sum(-1, keepdims=True))
    log_probs = np.take_along_axis(log_probs[:, :-1], compared["ids"][:, 1:, None], -1)[..., 0]
    mask = compared["mask"][:, 1:]
    nll = -((log_probs * mask).sum(-1) / mask.sum(-1))[: ROWS // 2].mean()
    assert more - plain == pytest.approx(2 * nll, rel=1e-12)
    assert float(pairs["chosen_nll"][0]) / 3 == pytest.approx(nll, rel=1e-12)


# ---- action triggering


def pair_of(compared, number):
    """One of the three pairs alone, with a reference of 0."""
    rows = [number, number + ROWS // 2]
    alone = {name: array[rows] for name, array in compared.items()}
    return alone | {"reference": np.zeros(2)}


@pytest.mark.parametrize("alpha", [0.2, 1.5])
@pytest.mark.parametrize("number", range(ROWS // 2))
def test_action_triggering_is_trls_of_one_pair(compared, number, alpha):
    alone = pair_of(compared, number)
    theirs, their_gradient, metrics = trl_dpo(alone, ["sigmoid_norm", "sft"], [1.0, alpha], 1.0)
    with jax.enable_x64(True):
        ours, gradient, pairs = our_dpo(alone, Trigger(alpha), trigger_pairs)
    assert ours == pytest.approx(theirs, rel=1e-12)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-10, atol=1e-14)
    lengths = alone["mask"][:, 1:].sum(-1)
    for side, length in zip(("chosen", "rejected"), lengths, strict=True):
        total, weight = map(float, pairs[f"{side}_mean"])
        assert total / weight == pytest.approx(metrics[f"logps/{side}"][0] / length, rel=1e-6)


def test_several_pairs_of_action_triggering_have_their_mean(compared):
    with jax.enable_x64(True):
        every, _, _ = our_dpo(compared, Trigger(), trigger_pairs)
        alone = [our_dpo(pair_of(compared, n), Trigger(), trigger_pairs)[0] for n in range(3)]
    assert every == pytest.approx(np.mean(alone), rel=1e-12)
