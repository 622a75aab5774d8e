"""The diagnostics of one (arm, checkpoint, domain): D1, D2, D3, revision, and what explains them.

A record's driver says whose actions were played: a kind of action ("cot", "prompt", …), or
"reference" (held-out expert states, with the expert's action; nothing is played).
`cotjax.diagnostics.episodes` says how a state is judged.

The gap pairs games: a game that either mode lacks, or that broke in one, is excluded from it. An
episode is paired with the one of the same game and sample number; a game's samples count as one
game, for they are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cotjax.diagnostics import statistics
from cotjax.diagnostics.episodes import EpisodeCounts
from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import Measured
from cotjax.diagnostics.probes import PROBE_DIFFERENCES, PROBE_METRICS
from cotjax.diagnostics.statistics import Estimate

# (game, sample) -> [total, number of states or episodes].
Cells = dict[tuple[str, int], list[float]]


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

    def estimate(self, name: str) -> Estimate:
        """Return a metric, or a difference of two (DIFFERENCES), with its interval."""
        if name in DIFFERENCES:
            return contrast([(1, self, name)])
        cells = self.cells.get(name, {})
        totals, counts = by_game(cells, cells)
        if METRICS[name].kind == "rate":
            return statistics.rate(totals, counts)
        upper = METRICS[name].upper
        if upper is None:
            upper = self.max_steps if name.startswith("steps") else self.longest_response
        return statistics.mean(totals, counts, upper, METRICS[name].low)

    def _count(self, metric: str, key: tuple[str, int], total: float, n: int) -> None:
        cell = self.cells.setdefault(metric, {}).setdefault(key, [0.0, 0])
        cell[0] += total
        cell[1] += n


# Terms of a signed sum: (+1 or -1, point, metric).
Signed = Sequence[tuple[int, Point, str]]


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


def contrast(signed: Signed) -> Estimate:
    """Return a signed sum of rates (or gaps) of several points, paired by game and sample.

    Example: [(1, last, "gap"), (-1, base, "gap")] is the change of the gap.
    """
    return statistics.contrast(_terms(signed))


def contrast_p(signed: Signed) -> float | None:
    """Return the p-value of a contrast's exact sign test over games; None without games.

    With one episode per game it is McNemar's test.
    """
    terms = _terms(signed)
    measured = np.all([counts > 0 for _, _, counts in terms], axis=0)
    if not measured.any():
        return None
    rates = [sign * totals[measured] / counts[measured] for sign, totals, counts in terms]
    return statistics.sign_test(np.sum(rates, axis=0))


def _terms(signed: Signed) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Return (sign, totals by game, counts by game) of each term, over the games of all terms."""
    flat: list[tuple[int, Cells]] = []
    for sign, point, name in signed:
        first, *second = DIFFERENCES.get(name, (name,))
        flat.append((sign, point.cells.get(first, {})))
        flat += [(-sign, point.cells.get(other, {})) for other in second]
    in_all = shared_keys([cells for _, cells in flat])
    return [(sign, *by_game(cells, in_all)) for sign, cells in flat]


def shared_keys(cells: Sequence[Cells]) -> list[tuple[str, int]]:
    """Return the (game, sample) that all of these metrics were counted on, in order."""
    return sorted(set.intersection(*({key for key, (_, n) in each.items() if n} for each in cells)))


def by_game(
    cells: Mapping[tuple[str, int], Sequence[float]], keys: Iterable[tuple[str, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (totals, counts) by game of the cells at `keys`, each game's samples added up."""
    games: dict[str, np.ndarray] = {}
    for key in keys:
        games[key[0]] = games.get(key[0], np.zeros(2)) + cells[key]
    totals, counts = np.array(list(games.values())).reshape(-1, 2).T
    return totals, counts
