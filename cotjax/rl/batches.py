"""From what a step played to the micro-batches of its updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cotjax.data.codec import Codec
from cotjax.data.grown import grown_examples
from cotjax.data.rollouts import PlayedExample, played_examples, policy_rows
from cotjax.rl.advantages import StepAdvantages, Visited, gigpo, step_advantages
from cotjax.rl.play import is_flat
from cotjax.rl.records import check_sampled, turns_of
from cotjax.rl.rewards import response_of
from cotjax.rl.rollouts import Rollouts
from cotjax.rl.run import RLRun
from cotjax.rl.update import Batch
from cotjax.rollout.record import Turn


def step_batches(
    run: RLRun, rollouts: Rollouts, advantages: Sequence[np.ndarray], codec: Codec
) -> list[list[Batch]]:
    """Return the micro-batches of each update of a step, `settings.batch` rows each.

    Each update trains on whole groups, in their order. Flat groups are among them with `rl.flat`
    "keep" alone. An update without a sampled token is left out.

    Raises:
      DataError: a tree is longer than a row, or a number is not finite; the message names the play.
    """
    trained = [
        position
        for position in dict.fromkeys(rollouts.positions)
        if run.rl.flat == "keep" or not _is_flat(rollouts, position, run.rl)
    ]
    updates: list[list[Batch]] = []
    for positions in np.array_split(np.array(trained, np.int64), run.rl.updates):
        plays, steps = _examples(run, rollouts, codec, advantages, set(positions.tolist()))
        if not any(plays.values()):
            continue
        batch = policy_rows(
            plays,
            steps,
            row_length=run.settings.row_length,
            multiple=run.settings.batch,
            dropping=run.dropping,
            update=rollouts.about.step - 1,
            budget=run.rl.normalizer,
        ).batch
        size = run.settings.batch
        updates.append(
            [
                {name: array[row : row + size] for name, array in batch.items()}
                for row in range(0, len(batch["ids"]), size)
            ]
        )
    return updates


def advantages_of(rollouts: Rollouts, settings: Any) -> StepAdvantages:
    """Return the advantage of each step of each play. `settings`: `config.rl`.

    Without `rl.omega` there are no anchors.

    Raises:
      DataError: a group has not `rl.group` plays, or a play is there twice.
    """
    kind, penalty, size = settings.advantage, settings.format_penalty, settings.group
    if not settings.omega:
        values, counts = step_advantages(rollouts.plays, kind, penalty=penalty, size=size)
        return StepAdvantages(values, counts, anchors=0, singletons=0, steps=0)
    visited = []
    for play, episode in zip(rollouts.plays, rollouts.episodes, strict=True):
        rewards = [-penalty * invalid for invalid in play.invalid]
        if rewards:
            rewards[-1] += play.reward
        anchors = tuple(_anchor(turn, settings.anchor) for turn in episode.steps)
        visited.append(Visited(play.name, play.group, tuple(rewards), anchors))
    how = {"omega": settings.omega, "gamma": settings.gamma, "size": size}
    return gigpo(visited, kind, **how)


def _anchor(turn: Turn, anchor: str) -> tuple[str, ...]:
    """Return what two steps have in common that start from one state."""
    listed = turn.admissible_commands or () if anchor == "observation+admissible" else ()
    return (turn.observation, *listed)


def _is_flat(rollouts: Rollouts, position: int, settings: Any) -> bool:
    places = [place for place, own in enumerate(rollouts.positions) if own == position]
    return is_flat([rollouts.plays[place] for place in places], settings)


def _examples(
    run: RLRun,
    rollouts: Rollouts,
    codec: Codec,
    advantages: Sequence[np.ndarray],
    positions: set[int],
) -> tuple[dict[str, list[PlayedExample]], dict[str, int]]:
    """Return the trees and the number of steps of each play in these groups, by its name."""
    plays: dict[str, list[PlayedExample]] = {}
    steps: dict[str, int] = {}
    for place, position in enumerate(rollouts.positions):
        if position not in positions:
            continue
        name, episode = rollouts.plays[place].name, rollouts.episodes[place]
        check_sampled(episode)
        turns = turns_of(episode, codec)
        if run.rl.mask_cut:
            turns = [
                turn if response_of(played).stopped else replace(turn, ids=(), log_probs=())
                for turn, played in zip(turns, episode.steps, strict=True)
            ]
        own = advantages[place].tolist()
        made = played_examples if codec.growing is None else grown_examples
        plays[name] = made(codec, name, turns, own, run.settings.row_length)
        steps[name] = len(turns)
    return plays, steps
