"""The diagnostics of one (arm, checkpoint, domain): D1, D2, D3, revision, and what explains them.

A record's driver says whose actions were played: a kind of action ("cot", "prompt", …), or
"reference" (held-out expert states, with the expert's action; nothing is played).
`cotjax.diagnostics.episodes` says how a state is judged.

The gap pairs games: a game that either mode lacks, or that broke in one, is excluded from it. An
episode is paired with the one of the same seed, game and sample number; a game's samples count as
one game, for they are not independent. The base has no seed: it goes with each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from cotjax.diagnostics import statistics
from cotjax.diagnostics.episodes import EpisodeCounts
from cotjax.diagnostics.metric import Metric, at_layer, of_layer
from cotjax.diagnostics.probe_rows import Measured
from cotjax.diagnostics.probes import PROBE_DIFFERENCES, PROBE_METRICS
from cotjax.diagnostics.statistics import Combination, Estimate

# (game, sample) -> [total, number of states or episodes].
Cells = dict[tuple[str, int], list[float]]
# A training seed, or the name of an arm whose seed is not known; None: that of no seed.
Seed = int | str | None
T = TypeVar("T")


METRICS = {
    "d3_cot": Metric("D3, success by CoT actions", "cot"),
    "d3_prompt": Metric("D3, success by prompt actions", "prompt"),
    "gap": Metric("D3, gap (CoT − prompt)", "both", "difference"),
    "d1_cot": Metric("D1, CoT action is the reference action", "reference"),
    "d1_prompt": Metric("D1, prompt action is the reference action", "reference"),
    "d1_gap": Metric("D1, gap (CoT − prompt)", "reference", "difference"),
    "d2": Metric("D2, both actions the same (expert states)", "reference"),
    "d2_cot_driven": Metric("D2, both actions the same (CoT-driven states)", "cot"),
    "revision": Metric("revision rate (expert states)", "reference"),
    "revision_helpful": Metric("helpful revisions", "reference"),
    "revision_harmful": Metric("harmful revisions", "reference"),
    "revision_neutral": Metric("neutral revisions", "reference"),
    "revision_cot_driven": Metric("revision rate (CoT-driven states)", "cot"),
    "revision_not_comparable": Metric(
        "states without two actions to compare (expert states)", "reference"
    ),
    "revision_not_comparable_cot_driven": Metric(
        "states without two actions to compare (CoT-driven states)", "cot"
    ),
    "reasoned_cot": Metric("CoT responses that did reason", "cot"),
    "valid_cot": Metric("valid CoT responses", "cot"),
    "valid_prompt": Metric("valid prompt responses", "prompt"),
    "admissible_cot": Metric("admissible CoT actions", "cot"),
    "admissible_prompt": Metric("admissible prompt actions", "prompt"),
    "not_accepted_cot": Metric("actions not accepted, CoT-driven steps", "cot"),
    "not_accepted_prompt": Metric("actions not accepted, prompt-driven steps", "prompt"),
    # Constrained kinds: the most likely of the admissible actions. Their D3 is by
    # `evaluate.constrained_by`, their D1 by the total log-probability, or by its mean per token.
    "d3_cot_constrained": Metric("D3, success by constrained CoT actions", "cot_constrained"),
    "d3_prompt_constrained": Metric(
        "D3, success by constrained prompt actions", "prompt_constrained"
    ),
    "gap_constrained": Metric(
        "D3, gap of constrained actions (CoT − prompt)", "both", "difference"
    ),
    "d1_cot_constrained": Metric("D1, constrained CoT action is the reference action", "reference"),
    "d1_prompt_constrained": Metric(
        "D1, constrained prompt action is the reference action", "reference"
    ),
    "d1_gap_constrained": Metric(
        "D1, gap of constrained actions (CoT − prompt)", "reference", "difference"
    ),
    "d1_cot_constrained_mean": Metric("D1, constrained CoT action, by mean", "reference"),
    "d1_prompt_constrained_mean": Metric("D1, constrained prompt action, by mean", "reference"),
    "d2_constrained": Metric("D2, both constrained actions the same (expert states)", "reference"),
    "d3_instructed": Metric("D3, success by instructed actions", "instructed"),
    "d1_instructed": Metric("D1, instructed action is the reference action", "reference"),
    "reasoned_instructed": Metric("instructed responses that did reason", "instructed"),
    "valid_instructed": Metric("valid instructed responses", "instructed"),
    "admissible_instructed": Metric("admissible instructed actions", "instructed"),
    "not_accepted_cot_constrained": Metric(
        "actions not accepted, steps driven by constrained CoT actions", "cot_constrained"
    ),
    "not_accepted_prompt_constrained": Metric(
        "actions not accepted, steps driven by constrained prompt actions", "prompt_constrained"
    ),
    "not_accepted_instructed": Metric("actions not accepted, instructed steps", "instructed"),
    "valid_cot_states": Metric("valid CoT responses (expert states)", "reference"),
    "valid_prompt_states": Metric("valid prompt responses (expert states)", "reference"),
    "valid_instructed_states": Metric("valid instructed responses (expert states)", "reference"),
    "admissible_cot_states": Metric("admissible CoT actions (expert states)", "reference"),
    "admissible_prompt_states": Metric("admissible prompt actions (expert states)", "reference"),
    "admissible_instructed_states": Metric(
        "admissible instructed actions (expert states)", "reference"
    ),
    "reasoned_instructed_states": Metric(
        "instructed responses that did reason (expert states)", "reference"
    ),
    "steps_cot": Metric("steps per episode, CoT-driven", "cot", "mean"),
    "steps_prompt": Metric("steps per episode, prompt-driven", "prompt", "mean"),
    "steps_cot_constrained": Metric(
        "steps per episode, by constrained CoT actions", "cot_constrained", "mean"
    ),
    "steps_prompt_constrained": Metric(
        "steps per episode, by constrained prompt actions", "prompt_constrained", "mean"
    ),
    "steps_instructed": Metric("steps per episode, instructed", "instructed", "mean"),
    # How far episodes get, where the environment says so.
    "score_cot": Metric("share of the goal reached, CoT-driven episodes", "cot", "mean", 1.0),
    "score_prompt": Metric(
        "share of the goal reached, prompt-driven episodes", "prompt", "mean", 1.0
    ),
    "new_tokens_cot": Metric("new tokens per CoT response", "cot", "mean"),
    "new_tokens_prompt": Metric("new tokens per prompt response", "prompt", "mean"),
    "new_tokens_instructed": Metric("new tokens per instructed response", "instructed", "mean"),
    **PROBE_METRICS,
}

# Differences of two rates, over the same games (the gap) or the same states (the gap of D1).
DIFFERENCES = {
    "gap": ("d3_cot", "d3_prompt"),
    "gap_constrained": ("d3_cot_constrained", "d3_prompt_constrained"),
    "d1_gap": ("d1_cot", "d1_prompt"),
    "d1_gap_constrained": ("d1_cot_constrained", "d1_prompt_constrained"),
    **PROBE_DIFFERENCES,
}


@dataclass
class Point:
    """Everything counted at one (arm, checkpoint, domain).

    Attributes:
      cells: metric -> its cells.
      ended: driver -> how its episodes ended -> their number.
      env_faults: driver -> faults of its environments.
      invalid: "cot", "prompt" or "instructed" -> reason -> number of responses that drove an
        episode.
      max_steps: upper limit of the steps of an episode.
      longest_response: upper limit of the tokens of a response.
    """

    cells: dict[str, Cells] = field(default_factory=dict)
    ended: dict[str, Counter[str]] = field(default_factory=dict)
    env_faults: Counter[str] = field(default_factory=Counter)
    invalid: dict[str, Counter[str]] = field(
        default_factory=lambda: {"cot": Counter(), "prompt": Counter()}
    )
    max_steps: int = 1
    longest_response: int = 1

    def add(self, episode: EpisodeCounts) -> None:
        """Add one episode."""
        driver, elicitation = episode.driver, episode.elicitation
        self.ended.setdefault(driver, Counter())[episode.ended] += 1
        self.env_faults[driver] += episode.env_faults
        # Only the responses that drove the episode. A constrained action is never invalid.
        if driver in episode.invalid:
            self.invalid.setdefault(driver, Counter()).update(episode.invalid[driver])
        self.max_steps = max(self.max_steps, int(elicitation.get("max_steps") or 1))
        self.longest_response = max(
            self.longest_response, int(elicitation.get("max_new_tokens") or 1)
        )
        for name, (total, n) in episode.counts.items():
            self._count(name, (episode.game, episode.sample), total, n)

    def add_state(self, state: Measured) -> None:
        """Add a state that a probe measured."""
        for name, value in state.counts.items():
            self._count(name, (state.game, state.sample), value, 1)

    @property
    def by_seed(self) -> Mapping[Seed, Point]:
        """What was counted, as that of no seed in particular."""
        return {None: self}

    @property
    def together(self) -> Point:
        """The point itself, as `Pool.together`."""
        return self

    def estimate(self, name: str) -> Estimate:
        """Return a metric, or a difference of two (DIFFERENCES), with its interval."""
        return _estimate(self, name)

    def _count(self, metric: str, key: tuple[str, int], total: float, n: int) -> None:
        cell = self.cells.setdefault(metric, {}).setdefault(key, [0.0, 0])
        cell[0] += total
        cell[1] += n


@dataclass(frozen=True)
class Pool:
    """One (arm, checkpoint, domain) under each of the arm's seeds.

    Attributes:
      by_seed: seed -> what was counted; None for what belongs to every seed (the base).
    """

    by_seed: Mapping[Seed, Point]

    def estimate(self, name: str) -> Estimate:
        """Return a metric, or a difference of two, with its interval over games and seeds."""
        return _estimate(self, name)

    @cached_property
    def together(self) -> Point:
        """Sums over the seeds of all that is not estimated."""
        whole = Point()
        for point in self.by_seed.values():
            for driver, ended in point.ended.items():
                whole.ended.setdefault(driver, Counter()).update(ended)
            for kind, reasons in point.invalid.items():
                whole.invalid.setdefault(kind, Counter()).update(reasons)
            whole.env_faults.update(point.env_faults)
        return whole


# Terms of a weighted sum: (weight, where, metric).
Signed = Sequence[tuple[float, Point | Pool, str]]


def points(
    episodes: Iterable[EpisodeCounts], measured: Iterable[Measured] = ()
) -> dict[tuple[str, int, str], Point]:
    """Return (arm, checkpoint, domain) -> Point over all episodes, and what probes measured."""
    by_place: dict[tuple[str, int, str], Point] = {}
    for episode in episodes:
        place = episode.arm, episode.checkpoint, episode.domain
        by_place.setdefault(place, Point()).add(episode)
    for state in measured:
        place = state.arm, state.checkpoint, state.domain
        if place in by_place:
            by_place[place].add_state(state)
    return by_place


def by_layer(where: Point | Pool) -> dict[str, tuple[Estimate, ...]]:
    """Return metric -> its estimate in each layer, of those that were counted by layer."""
    depth: dict[str, int] = {}
    for point in where.by_seed.values():
        for metric, layer in map(of_layer, point.cells):
            if layer is not None:
                depth[metric] = max(depth.get(metric, 0), layer + 1)
    return {
        metric: tuple(where.estimate(at_layer(metric, layer)) for layer in range(depth[metric]))
        for metric in sorted(depth)
    }


def contrast(signed: Signed) -> Estimate:
    """Return a signed sum of metrics, paired by seed, game and sample.

    Example: [(1, last, "gap"), (-1, base, "gap")] is the change of the gap.
    """
    combined = combine(signed)
    return statistics.NOTHING if combined is None else combined.estimate()


def combine(signed: Signed) -> Combination | None:
    """Return a weighted sum of metrics, with its tests; None where no game has all of them."""
    low, upper = _limits([point for _, point, _ in signed], signed[0][2])
    return statistics.combine(terms_of(signed), upper - low)


def contrast_p(signed: Signed) -> float | None:
    """Return the p-value of a contrast; None without games.

    With one seed, that of the exact sign test over games (with one episode per game: McNemar's
    test); with several, the one that belongs to the interval over games and seeds.
    """
    terms = terms_of(signed)
    measured = np.all([counts > 0 for _, _, counts in terms], axis=0)
    if not measured.any():
        return None
    if len(measured) > 1:
        combined = combine(signed)
        return None if combined is None else combined.p
    rates = [sign * totals[measured] / counts[measured] for sign, totals, counts in terms]
    return statistics.sign_test(np.sum(rates, axis=0))


def _estimate(where: Point | Pool, name: str) -> Estimate:
    if name in DIFFERENCES:
        return contrast([(1, where, name)])
    ((_, totals, counts),) = terms_of([(1, where, name)])
    if METRICS[of_layer(name)[0]].kind == "rate":
        return statistics.rate(totals, counts)
    low, upper = _limits([where], name)
    return statistics.mean(totals, counts, upper, low)


def _limits(where: Sequence[Point | Pool], name: str) -> tuple[float, float]:
    """Return the least and the most that a metric's average can be."""
    metric = METRICS[of_layer(name)[0]]
    if metric.kind != "mean":
        return 0.0, 1.0
    if metric.upper is not None:
        return metric.low, metric.upper
    seen = [point for each in where for point in each.by_seed.values()]
    if name.startswith("steps"):
        return metric.low, max(point.max_steps for point in seen)
    return metric.low, max(point.longest_response for point in seen)


def terms_of(signed: Signed) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Return (weight, totals, counts) of each term, [seeds, games], of what all terms share."""
    flat: list[tuple[float, dict[Seed, Cells]]] = []
    for weight, where, name in signed:
        first, *second = DIFFERENCES.get(name, (name,))
        for sign, metric in ((1, first), *((-1, other) for other in second)):
            of_seeds = {seed: each.cells.get(metric, {}) for seed, each in where.by_seed.items()}
            flat.append((sign * weight, of_seeds))
    rows = paired_seeds([of_seeds for _, of_seeds in flat])
    keys = [shared_keys(row) for row in rows]
    games = sorted({game for row in keys for game, _ in row})
    tables = np.zeros((len(flat), 2, len(rows), len(games)))
    place = {game: number for number, game in enumerate(games)}
    for number, (row, shared) in enumerate(zip(rows, keys, strict=True)):
        for term, cells in enumerate(row):
            for key in shared:
                tables[term, :, number, place[key[0]]] += cells[key]
    return [
        (weight, totals, counts) for (weight, _), (totals, counts) in zip(flat, tables, strict=True)
    ]


def paired_seeds(terms: Sequence[Mapping[Seed, T]]) -> list[list[T]]:
    """Return what each term has under each seed that all of them have.

    What belongs to every seed goes with each. Where seeds are known, but none is shared, they are
    paired in order: they have nothing in common that would be lost.
    """
    own = [list(each) for each in terms if None not in each]
    if not own:
        return [[each[None] for each in terms]]
    shared = [seed for seed in own[0] if all(seed in each for each in own)]
    if shared:
        rows = [[seed] * len(own) for seed in shared]
    else:
        rows = [list(row) for row in zip(*own, strict=False)]
    paired = []
    for row in rows:
        seeds = iter(row)
        paired.append([each[None] if None in each else each[next(seeds)] for each in terms])
    return paired


def shared_keys(cells: Sequence[Cells]) -> list[tuple[str, int]]:
    """Return the (game, sample) that all of these metrics were counted on, in order."""
    return sorted(set.intersection(*({key for key, (_, n) in each.items() if n} for each in cells)))
