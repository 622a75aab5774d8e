"""Associative recall: pretraining that forms induction heads (Olsson et al., 2022).

A pretrained language model has heads that find an earlier mention of a token and read what followed
it. A million parameters trained on play alone hardly form them: play needs such a look-up a few
times an episode, among hundreds of tokens. Here the model first reads random pairs of tokens,
repeated in changing orders, where the first of a pair predicts the second (Ba et al., 2016):

    a 7 b 2 c 5 b 2 a 7 c 5 c 5 …

With two to four pairs the heads form suddenly, within some 300 updates; a few more updates extend
them to many pairs and any token. With many pairs from the start they do not form in ten times as
many updates. The tokens are drawn at random, so that no world's text is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from cotjax.errors import UsageError
from cotjax.masking import token_sum
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.objectives.supervised import masked_cross_entropy
from cotjax.train.optim import make_optimizer


@dataclass(frozen=True)
class Lesson:
    """A stage of the training, with easier or harder texts."""

    share: float  # of all updates
    rows: int  # texts an update
    length: int  # tokens a text
    fewest: int  # pairs a text
    most: int
    tokens: int  # of the vocabulary that occur; 0: all
    learning_rate: float


LESSONS = (
    Lesson(share=0.65, rows=256, length=24, fewest=2, most=4, tokens=256, learning_rate=8e-3),
    Lesson(share=0.35, rows=48, length=128, fewest=2, most=24, tokens=0, learning_rate=3e-3),
)
_UNPREDICTABLE_WEIGHT = 0.1  # loss weight of a token that cannot be predicted; the others have 1


def grow_recall(
    config: ModelConfig,
    params: dict,
    key: jax.Array,
    steps: int,
    report: Callable[[int, int, float], None] | None = None,
) -> dict:
    """Train `params`, which are donated, on the lessons for `steps` updates in all.

    The same key gives the same parameters. `report` is called every ten updates with (updates done,
    updates in all, share of the predictable tokens that are predicted).

    Raises UsageError when the vocabulary is too small for the lessons' pairs.
    """
    least = 2 * max(lesson.most for lesson in LESSONS)
    if config.vocab_size < least:
        raise UsageError(
            f"model.recall_steps: the lessons need {least} tokens, the vocabulary has "
            f"{config.vocab_size}; set it to 0"
        )
    done = 0
    for index, lesson in enumerate(LESSONS):
        last = index == len(LESSONS) - 1
        updates = steps - done if last else round(steps * lesson.share)
        if not updates:
            continue
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, lesson.learning_rate, min(30, updates - 1), 2 * updates
        )
        optimizer = make_optimizer(
            schedule, b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=1.0, vector_rate=10.0
        )
        update = _make_update(config, optimizer, lesson)
        opt_state = jax.jit(optimizer.init)(params)
        for _ in range(updates):
            params, opt_state, right = update(params, opt_state, jax.random.fold_in(key, done))
            done += 1
            if report is not None and (done % 10 == 0 or done == steps):
                report(done, steps, float(right))
    return params


def _make_update(config: ModelConfig, optimizer: optax.GradientTransformation, lesson: Lesson):
    def loss_of(params, ids_BT, predictable_BT):
        B, T = ids_BT.shape
        positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        one, trunk = jnp.ones((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32)
        logits_BTV = decoder.logits(
            config, params, decoder.hidden_states(config, params, ids_BT, positions, one, trunk)
        )[:, :-1]
        targets, predictable = ids_BT[:, 1:], predictable_BT[:, 1:]
        weights = jnp.where(predictable, 1.0, _UNPREDICTABLE_WEIGHT)
        total, weight = token_sum(masked_cross_entropy(logits_BTV, targets, weights > 0), weights)
        right = ((logits_BTV.argmax(-1) == targets) & predictable).sum() / predictable.sum()
        return total / weight, right

    def update(params, opt_state, key):
        ids_BT, predictable_BT = repeated_pairs(lesson, config.vocab_size, key)
        (_, right), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, ids_BT, predictable_BT
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, right

    return jax.jit(update, donate_argnums=(0, 1))


def repeated_pairs(lesson: Lesson, vocab_size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw a batch: (ids [rows, length], which of them are predictable [rows, length]).

    A token is predictable when it is the second of a pair that occurred before.
    """
    B, T, most = lesson.rows, lesson.length, lesson.most
    kept = min(lesson.tokens or vocab_size, vocab_size)
    # The same tokens are first of a pair in every batch: the first half of one fixed permutation.
    order = jax.random.permutation(jax.random.key(0), vocab_size)[:kept].astype(jnp.int32)
    for_firsts, for_seconds, for_count, for_rounds = jax.random.split(key, 4)
    half = kept // 2
    firsts = order[jnp.argsort(jax.random.uniform(for_firsts, (B, half)), axis=1)[:, :most]]
    seconds = order[half + jax.random.randint(for_seconds, (B, most), 0, kept - half)]
    count_B1 = jax.random.randint(for_count, (B, 1), lesson.fewest, lesson.most + 1)
    # Each round repeats the pairs 0 .. count - 1 in its own order.
    rounds = -(-T // (2 * lesson.fewest))
    scores = jnp.where(
        jnp.arange(most)[None, None, :] < count_B1[:, :, None],
        jax.random.uniform(for_rounds, (B, rounds, most)),
        2.0,
    )
    orders = jnp.argsort(scores, axis=2)
    index = jnp.arange(T)[None, :] // 2
    pair_BT = orders[jnp.arange(B)[:, None], index // count_B1, index % count_B1]
    second = jnp.broadcast_to(jnp.arange(T)[None, :] % 2 == 1, (B, T))
    ids = jnp.where(
        second,
        jnp.take_along_axis(seconds, pair_BT, axis=1),
        jnp.take_along_axis(firsts, pair_BT, axis=1),
    )
    return ids, second & (index // count_B1 > 0)
