"""When a model searches, what for, and what its answers rest on: figures of search episodes.

| figure | ratio |
|---|---|
| `exact`, `f1` | right answers, F1 over words, an episode |
| `searches`, `oracle` | searches an episode: made, and needed by one that finds what it looks for |
| `precision` | needed searches among the searches |
| `recall` | needed searches among the steps in which a fact was missing |
| `trigger_f1` | the harmonic mean of the two |
| `regret` | needless searches and missed ones an episode |
| `repeated` | searches in the words of an earlier one, among the searches |
| `found` | searches whose results state the missing fact, among the needed ones |
| `reached` | facts known or read as they are, up to the first that was not, among those needed |
| `gold_seen` | episodes that were shown a right answer |
| `reading`, `guessing` | right answers where one was shown, and where none was |
| `answered`, `limit` | episodes with an answer, and with a search beyond the limit |
| `invalid`, `cut` | malformed responses, and those cut by the token limit, among all |
| `right_known`, `right_unknown` | facts that results state as they are, of known ones, of others |
| `invented` | facts that results state of what does not exist |

Where results are a retriever's, the last three rows describe it; where the policy writes them, they
describe its world model. Intervals are over questions (`cotjax.diagnostics.statistics`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cotjax.diagnostics.statistics import Estimate, contrast, mean, rate
from cotjax.envs.base import Game, SearchCounts
from cotjax.envs.worlds import World
from cotjax.errors import DataError, UsageError
from cotjax.rollout.record import Record

Key = TypeVar("Key")
# Figure -> (what is counted, among what), as sums of fields of `_Judged`.
_RATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "exact": (("exact",), ("episodes",)),
    "f1": (("f1",), ("episodes",)),
    "precision": (("needed",), ("searches",)),
    "recall": (("needed",), ("needed", "missed")),
    "trigger_f1": (("needed", "needed"), ("needed", "needed", "needless", "missed")),
    "repeated": (("repeated",), ("searches",)),
    "found": (("found",), ("needed",)),
    "reached": (("reached",), ("facts",)),
    "gold_seen": (("gold_seen",), ("episodes",)),
    "reading": (("read",), ("gold_seen",)),
    "guessing": (("guessed",), ("gold_unseen",)),
    "answered": (("answered",), ("episodes",)),
    "limit": (("limited",), ("episodes",)),
    "invalid": (("invalid",), ("responses",)),
    "cut": (("cut",), ("responses",)),
    "right_known": (("right_known",), ("stated_known",)),
    "right_unknown": (("right_unknown",), ("stated_unknown",)),
    "invented": (("invented",), ("stated_known", "stated_unknown", "invented")),
}
_MEANS: dict[str, tuple[str, ...]] = {
    "searches": ("searches",),
    "oracle": ("oracle",),
    "regret": ("needless", "missed"),
}
FIGURES = (*_RATES, *_MEANS)


@dataclass(frozen=True)
class Judged:
    """A record with what its searches were worth."""

    record: Record
    counts: SearchCounts

    def count(self, name: str) -> float:
        """Return a field of the counts, or one that is made of them and of the record."""
        counts, record = self.counts, self.record
        responses = [
            turn.prompt if record.driver == "prompt" else turn.cot for turn in record.steps
        ]
        made: dict[str, float] = {
            "episodes": 1,
            "read": counts.exact * counts.gold_seen,
            "guessed": counts.exact * (1 - counts.gold_seen),
            "gold_unseen": 1 - counts.gold_seen,
            "limited": counts.refused > 0,
            "responses": sum(each is not None for each in responses),
            "invalid": sum(each is not None and not each.valid for each in responses),
            "cut": sum(each is not None and each.reason == "cut" for each in responses),
        }
        return float(made[name] if name in made else getattr(counts, name))


def judged(
    records: Iterable[Record], world: World, games: Mapping[tuple[str, str], Game]
) -> list[Judged]:
    """Return the records that the policy played, judged; what an environment broke is left out.

    Args:
      games: (split, id) -> game (`cotjax.rollout.verify.games_of`'s).

    Raises:
      DataError: a record's game is not among the games.
      UsageError: the world has no searches.
    """
    found = []
    for record in records:
        if record.driver == "reference" or record.ended == "env_error":
            continue
        game = games.get((record.game.split, record.game.id))
        if game is None:
            raise DataError(
                f"{record.game.id}: there is no such game in split {record.game.split!r}; give the "
                "folder of questions that was played"
            )
        seen = [turn.observation for turn in record.steps]
        # An answer is shown to nobody; the results after the last search may be.
        actions = [turn.executed for turn in record.steps]
        counts = world.judge_searches(game, record.task, seen, actions)
        if counts is None:
            raise UsageError(f"world {world.name!r} has no searches that could be judged")
        found.append(Judged(record, counts))
    return found


def figures(episodes: Sequence[Judged]) -> dict[str, Estimate]:
    """Return every figure of these episodes. Samples of a question under a seed count together."""
    cells = _cells(episodes, list(dict.fromkeys(each.record.game.id for each in episodes)))
    return {
        **{
            name: rate(_sums(cells, above), _sums(cells, below))
            for name, (above, below) in _RATES.items()
        },
        **{
            name: mean(_sums(cells, what), _sums(cells, ("episodes",)), _most(episodes, what))
            for name, what in _MEANS.items()
        },
    }


def sim_to_real(simulated: Sequence[Judged], real: Sequence[Judged]) -> Estimate:
    """Return by how much more often answers are right where the policy writes its own results.

    Questions that only one side has played are left out.
    """
    return difference(simulated, real, "exact")


def difference(ours: Sequence[Judged], theirs: Sequence[Judged], figure: str) -> Estimate:
    """Return a figure of some episodes minus the same of others, on the questions of both sides."""
    above, below = _RATES[figure] if figure in _RATES else (_MEANS[figure], ("episodes",))
    others = {each.record.game.id for each in theirs}
    names = dict.fromkeys(each.record.game.id for each in ours)
    both, seeds = [name for name in names if name in others], _seeds([*ours, *theirs])
    terms = []
    for sign, side in ((1.0, ours), (-1.0, theirs)):
        cells = _cells(side, both, seeds)
        terms.append((sign, _sums(cells, above), _sums(cells, below)))
    span = 1.0 if figure in _RATES else _most([*ours, *theirs], above)
    return contrast(terms, span)


def grouped(episodes: Iterable[Judged], key: Callable[[Judged], Key]) -> dict[Key, list[Judged]]:
    """Return the episodes by a key, such as their task type or their domain, in its order."""
    groups: dict[Key, list[Judged]] = defaultdict(list)
    for episode in episodes:
        groups[key(episode)].append(episode)
    return dict(groups)


Seed = int | None
Cells = list[list[list[Judged]]]


def _seeds(episodes: Iterable[Judged]) -> list[Seed]:
    seeds = {each.record.training_seed for each in episodes}
    return sorted(seeds, key=lambda seed: -1 if seed is None else seed)


def _cells(
    episodes: Sequence[Judged], games: Sequence[str], seeds: Sequence[Seed] | None = None
) -> Cells:
    """Return the episodes of each seed and game, [seeds][games][]."""
    seeds = _seeds(episodes) if seeds is None else seeds
    places = {name: number for number, name in enumerate(games)}
    rows = {seed: number for number, seed in enumerate(seeds)}
    cells: Cells = [[[] for _ in games] for _ in seeds]
    for each in episodes:
        if each.record.game.id in places:
            own = cells[rows[each.record.training_seed]]
            own[places[each.record.game.id]].append(each)
    return cells


def _sums(cells: Cells, names: Sequence[str]) -> np.ndarray:
    """Return of each seed and game the sum of these fields over its episodes, [seeds, games]."""
    return np.array(
        [[sum(each.count(name) for each in own for name in names) for own in row] for row in cells],
        np.float64,
    )


def _most(episodes: Sequence[Judged], names: Sequence[str]) -> float:
    """Return the most that an episode has of these fields, at least 1."""
    return max([1.0, *(sum(each.count(name) for name in names) for each in episodes)])
