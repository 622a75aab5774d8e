"""Rows of played episodes and of pairs, for objectives over a tiny decoder."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from cotjax.data.pairs import OtherStates, PairCounts, step_pairs
from cotjax.data.pipeline import dropped_weights, packed_row
from cotjax.data.rollouts import PlayedTurn, played_examples, policy_rows
from cotjax.masking import Dropping
from cotjax.train.step import FIELDS
from helpers import tiny

CONFIG = tiny.model_config(vocab_size=64)
T = 128


def turns(codec, count, seed):
    """Steps of an episode with sampled ids of several lengths, one of them malformed."""
    rng = np.random.default_rng(seed)
    prompt, made = codec.encode("You see a fridge 1."), []
    for number in range(count):
        thought = " ".join(["i need a plate."] * int(rng.integers(1, 4)))
        text = f"<think> {thought} </think><action> open cabinet {number + 1} </action>"
        ids = codec.encode(text if number != 1 else "i need a plate. open cabinet 1")
        made.append(
            PlayedTurn(
                tuple(prompt), (), tuple(ids), tuple(rng.uniform(-4, 0, len(ids))), number != 1
            )
        )
        prompt = codec.encode(f"<action> look </action> You open the cabinet {number + 1}.")
    return made


def trees(codec, **options):
    made = {
        name: played_examples(codec, name, turns(codec, count, seed), advantages, 400)
        for seed, (name, count, advantages) in enumerate(
            [("a", 3, [1.0, -0.5, 0.8]), ("b", 1, [-1.2]), ("c", 2, [0.0, 0.6])]
        )
    }
    return rows(made, {"a": 3, "b": 1, "c": 2}, **options)


def rows(plays, steps, **options):
    settings = {"row_length": T, "multiple": 4, "update": 0, "dropping": Dropping.of(fraction=0.5)}
    batch = policy_rows(plays, steps, **settings | options).batch
    rng = np.random.default_rng(5)
    # Numbers of the reference and of the old policy that follow the target, wherever it stands.
    shift = rng.uniform(-0.3, 0.3, 64).astype(np.float32)
    batch["reference"] = np.where(batch["kl_weights"] > 0, batch["sampler"] - 0.1, 0)
    batch["old"] = batch["sampler"] + np.where(batch["kl_weights"] > 0, shift[batch["targets"]], 0)
    return {name: jnp.asarray(array, FIELDS["policy"][name]) for name, array in batch.items()}


def stored(examples, row_length=T, fraction=0.0, **fields):
    """A batch of one row for each list of pairs."""
    dropping = Dropping.of(fraction=fraction, unit="turn")
    made = [
        packed_row(
            [
                vars(pair)
                | {"id": pair.id.encode(), "reference": np.full(len(pair.ids), -2.0, np.float32)}
                for pair in row
            ],
            dropping,
            0,
            row_length,
        )
        for row in examples
    ]
    batch = dropped_weights(
        {name: np.stack([row[name] for row in made]) for name in made[0]}, fraction
    )
    batch |= fields
    return {name: jnp.asarray(array, FIELDS["preference"][name]) for name, array in batch.items()}


def made_pairs(codec, count=4, **rest):
    episodes = []
    for number in range(count):
        episode = tiny.trajectory(f"t{number}", 2)
        anywhere = tuple(f"open cabinet {n + 1}" for n in range(9))
        steps = tuple(replace(step, admissible_commands=anywhere) for step in episode.steps)
        episodes.append(replace(episode, steps=steps))
    answers = OtherStates(codec)
    return list(step_pairs(codec, episodes, answers, 200, PairCounts(), **rest))


def pairs(codec, **rest):
    made = made_pairs(codec)
    return stored([made[:1], made[1:2], made[2:3], made[3:4]], **rest)
