"""What a study of a config's size can find, before anything runs: by simulated studies.

The studies have the config's games, samples and seeds, and the rates that `config.primary` assumes.
Half the mean width of an interval says how well a number will be known. The smallest change that is
found is that beyond which four studies of five have an interval without 0: the half width plus
0.84 standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from cotjax.diagnostics import statistics
from cotjax.diagnostics.crossed import TAIL, quantile
from cotjax.diagnostics.share import Gain
from cotjax.diagnostics.simulated import Truth, change_of, gap_change_of
from cotjax.errors import UsageError
from cotjax.report.labels import domain_label
from cotjax.rollout.record import KINDS
from cotjax.study.arms import arms_of
from cotjax.study.games import wanted_games

STUDIES = 100
_FOUND = 0.8
_MEASURES = {"d3": "success of whole episodes (D3)", "d1": "agreement with the expert (D1)"}


@dataclass(frozen=True)
class Power:
    """What is found in one domain. Changes are shares: 0.1 is 10 points.

    Attributes:
      half: "cot", "prompt" or "gap" -> mean half width of the interval of its change.
      smallest: the same -> smallest change that 80 % of the studies find.
      in_family: the same, where all tests of the family share one level.
      share: mean half width of the interval of the prompt action's share of the gain, where it is
        bounded; None where it hardly ever is.
      bounded: share of the studies where it is bounded.
    """

    domain: str
    games: int
    samples: int
    seeds: int
    half: dict[str, float]
    smallest: dict[str, float]
    in_family: dict[str, float]
    share: float | None
    bounded: float


def check_primary(config: ConfigDict) -> None:
    """Raise UsageError for a primary measure, kinds or rates that are not possible."""
    primary = config.primary
    if primary.measure not in _MEASURES:
        raise UsageError(f"primary.measure is {primary.measure!r}; there are 'd3' and 'd1'")
    pairs = [("cot", "prompt"), ("cot_constrained", "prompt_constrained")]
    if tuple(primary.kinds) not in pairs or not set(primary.kinds) <= {*KINDS}:
        raise UsageError(
            f"primary.kinds is {tuple(primary.kinds)}; it must be {pairs[0]} or {pairs[1]}"
        )
    if missing := [name for name in primary.domains if name not in wanted_games(config)]:
        raise UsageError(
            f"primary.domains has {missing[0]!r}, of which no games are played; there are "
            f"{', '.join(wanted_games(config))}"
        )
    missing = [name for name in primary.arms if name not in seeds_of(config)]
    # Where all are missing, the config has taken the place of another's arms with its own.
    if missing and len(missing) < len(primary.arms):
        raise UsageError(
            f"primary.arms has {missing[0]!r}, which is no arm of the config; there are "
            f"{', '.join(seeds_of(config))}"
        )
    for name in ("assumed_base", "assumed_last"):
        rates = tuple(primary[name])
        if len(rates) != 2 or not all(0 < rate < 1 for rate in rates):
            raise UsageError(
                f"primary.{name} is {rates}; it must be the rates of CoT and prompt actions, each "
                "above 0 and below 1"
            )


def power_of(config: ConfigDict, studies: int = STUDIES) -> list[Power]:
    """Return what is found in each domain that is played.

    Raises UsageError as `check_primary` does.
    """
    check_primary(config)
    domains, cells = wanted_games(config), seeds_of(config)
    primary = config.primary
    arms = [arm for arm in primary.arms if arm in cells] or cells
    tests = 2 * len(primary.domains or domains) * max(len(arms), 1)
    seeds = min(cells.values(), default=1)
    return [
        _power(domain, truth_of(config, games, seeds), config, tests, studies)
        for domain, games in domains.items()
    ]


def seeds_of(config: ConfigDict) -> dict[str, int]:
    """Return the number of seeds of each arm of the report."""
    cells: dict[str, int] = {}
    for arm in arms_of(config).values():
        cells[arm.cell] = cells.get(arm.cell, 0) + 1
    return cells


def truth_of(config: ConfigDict, games: int, seeds: int) -> Truth:
    """Return the study that a config assumes, with one arm."""
    primary = config.primary
    states = primary.assumed_states if primary.measure == "d1" else 1
    return Truth(
        first=tuple(primary.assumed_base),
        last=(tuple(primary.assumed_last),),
        games=games,
        states=(states * config.evaluate.samples,) * 2,
        seeds=seeds,
        seed_deviation=primary.assumed_deviation if seeds > 1 else 0.0,
    )


def power_text(config: ConfigDict, power: Power) -> str:
    """Return what is found in a domain, in a line."""
    samples = f" x {power.samples} samples" if power.samples > 1 else ""
    seeds = f"{power.seeds} seed{'s' if power.seeds > 1 else ' (others are not covered)'}"
    share = (
        "its share in the prompt action is rarely bounded"
        if power.share is None
        else f"its share in the prompt action ±{100 * power.share:.0f} %"
    )
    words = {"cot": "of CoT actions", "prompt": "of prompt actions", "gap": "of the gap"}
    changes = ", ".join(
        f"{text} ±{100 * power.half[name]:.1f} (found from {100 * power.smallest[name]:.1f}, as "
        f"a verdict from {100 * power.in_family[name]:.1f})"
        for name, text in words.items()
    )
    return (
        f"{domain_label(power.domain)}, {_MEASURES[config.primary.measure]}, {power.games} games"
        f"{samples}, {seeds}: change {changes} points; {share}"
    )


def _power(domain: str, truth: Truth, config: ConfigDict, tests: int, studies: int) -> Power:
    rng = np.random.default_rng(0)
    halves: dict[str, list[float]] = {"cot": [], "prompt": [], "gap": []}
    strict: dict[str, list[float]] = {name: [] for name in halves}
    centres: dict[str, list[float]] = {name: [] for name in halves}
    shares = []
    for _ in range(studies):
        drawn = truth.draw(rng)
        terms = {kind: change_of(drawn, kind) for kind in ("cot", "prompt")}
        for name, each in (*terms.items(), ("gap", gap_change_of(drawn))):
            combined = statistics.combine(each)
            assert combined is not None
            halves[name].append(combined.spread.half())
            strict[name].append(combined.spread.half(TAIL / tests))
            centres[name].append(combined.centre)
        share = Gain(terms["prompt"], terms["cot"]).share
        if share.low is not None and share.high is not None:
            shares.append((share.high - share.low) / 2)
    beyond = {name: float(np.std(each)) * _power_quantile() for name, each in centres.items()}
    return Power(
        domain=domain,
        games=truth.games,
        samples=config.evaluate.samples,
        seeds=truth.seeds,
        half=_means(halves),
        smallest={name: half + beyond[name] for name, half in _means(halves).items()},
        in_family={name: half + beyond[name] for name, half in _means(strict).items()},
        share=float(np.median(shares)) if len(shares) > studies / 2 else None,
        bounded=len(shares) / studies,
    )


def _power_quantile() -> float:
    return quantile(np.inf, 1 - _FOUND)


def _means(values: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: float(np.mean(each)) for name, each in values.items()}
