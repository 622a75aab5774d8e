"""From what a step played to the micro-batches of its updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cotjax.data.codec import Codec
from cotjax.data.grown import grown_examples
from cotjax.data.rollouts import PlayedExample, PolicyRows, played_examples, policy_rows
from cotjax.rl.advantages import StepAdvantages, Visited, gigpo, step_advantages
from cotjax.rl.play import is_flat
from cotjax.rl.records import check_sampled, turns_of
from cotjax.rl.rewards import response_of
from cotjax.rl.rollouts import Rollouts
from cotjax.rl.run import RLRun
from cotjax.rl.update import Batch
from cotjax.rollout.record import Turn


@dataclass(frozen=True)
class UpdateRows:
    """What one update trains on: micro-batches of equal size, which together are the rows."""

    rows: PolicyRows
    batches: list[Batch]

    def joined(self, name: str) -> np.ndarray:
        """Return a field of all rows, as the micro-batches have it."""
        return np.concatenate([batch[name] for batch in self.batches])

    def replaced(self, name: str, array: np.ndarray) -> UpdateRows:
        """Return the same with another array in place of a field of all rows."""
        size = len(self.batches[0]["ids"])
        return UpdateRows(
            self.rows,
            [
                {**batch, name: array[at * size : (at + 1) * size]}
                for at, batch in enumerate(self.batches)
            ],
        )


def step_batches(
    run: RLRun, rollouts: Rollouts, advantages: Sequence[np.ndarray], codec: Codec
) -> list[UpdateRows]:
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
    updates: list[UpdateRows] = []
    for positions in np.array_split(np.array(trained, np.int64), run.rl.updates):
        plays, steps = _examples(run, rollouts, codec, advantages, set(positions.tolist()))
        if not any(plays.values()):
            continue
        rows = policy_rows(
            plays,
            steps,
            row_length=run.settings.row_length,
            multiple=run.settings.batch,
            dropping=run.dropping,
            update=rollouts.about.step - 1,
            budget=run.rl.normalizer,
            kl_on_dropped=run.rl.kl_on_dropped,
        )
        size = run.settings.batch
        batches: list[Batch] = [
            {name: array[row : row + size] for name, array in rows.batch.items()}
            for row in range(0, len(rows.batch["ids"]), size)
        ]
        updates.append(UpdateRows(rows, batches))
    return updates


def advantages_of(
    rollouts: Rollouts, settings: Any, costs: Mapping[str, np.ndarray] | None = None
) -> StepAdvantages:
    """Return the advantage of each step of each play.

    Without `rl.omega` there are no anchors.

    Args:
      settings: `config.rl`.
      costs: [steps] by the name of a play, what is taken from its rewards; of others nothing is.

    Raises:
      DataError: a group has not `rl.group` plays, or a play is there twice.
    """
    kind, costs = settings.advantage, costs or {}
    of_groups: dict[str, Any] = {"size": settings.group, "unit": settings.stat_unit}
    if not settings.omega:
        plays = [
            replace(play, cost=float(costs[play.name].sum())) if play.name in costs else play
            for play in rollouts.plays
        ]
        values, counts = step_advantages(plays, kind, **of_groups)
        return StepAdvantages(values, counts, anchors=0, singletons=0, steps=0)
    visited = []
    for play, episode in zip(rollouts.plays, rollouts.episodes, strict=True):
        rewards = [-penalty for penalty in play.penalties]
        if rewards:
            rewards[-1] += play.reward
        own = tuple(costs[play.name].tolist()) if play.name in costs else ()
        anchors = tuple(_anchors(episode.steps, settings.anchor))
        visited.append(Visited(play.name, play.group, tuple(rewards), anchors, own))
    return gigpo(visited, kind, omega=settings.omega, gamma=settings.gamma, **of_groups)


def _anchors(turns: Sequence[Turn], anchor: str) -> Iterator[tuple[str, ...]]:
    """Yield what each step has in common with those that start from the same state.

    A game is deterministic and a refused action changes nothing, so that "state" tells apart all
    states that differ. It keeps apart some that are one, reached in two orders of actions.
    """
    done: tuple[str, ...] = ()
    for turn in turns:
        if anchor == "state":
            yield done
            done += (turn.executed,) if turn.accepted else ()
        elif anchor == "observation+admissible":
            yield (turn.observation, *(turn.admissible_commands or ()))
        else:
            yield (turn.observation,)


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
