"""How often the report's intervals hold the truth, in simulated studies of known rates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from cotjax.diagnostics import statistics
from cotjax.diagnostics.crossed import crossed_spread, quantile
from cotjax.diagnostics.share import Gain
from cotjax.diagnostics.simulated import Policy, Truth, change_of, gap_change_of
from cotjax.diagnostics.statistics import Estimate, Term

Drawn = Mapping[Policy, tuple[np.ndarray, np.ndarray]]
_D1 = (3, 11)  # states of a game
_DEMO = Truth((0.3, 0.25), ((0.8, 0.4), (0.8, 0.4)))
# Name -> what is planted. Two arms are the same, so that their difference is 0.
SCENARIOS: Mapping[str, Truth] = {
    "demo-like, 60 games": _DEMO,
    "demo-like, 20 games": replace(_DEMO, games=20),
    "nothing was learned": replace(_DEMO, first=(0.5, 0.4), last=((0.5, 0.4), (0.5, 0.4))),
    "both modes high": replace(_DEMO, first=(0.85, 0.8), last=((0.95, 0.9), (0.95, 0.9))),
    "strongly clustered": replace(_DEMO, game=2.0, policy=1.0),
    "unequal states, 1 to 40": replace(_DEMO, states=(1, 40)),
    "rare events": replace(_DEMO, first=(0.03, 0.02), last=((0.08, 0.03), (0.08, 0.03))),
}
COLUMNS = ("rates", "gap", "change", "change of gap", "share", "arms")
# The rates of a study are within this many logits of the scenario's. What counts events holds one
# rate in 90 % and the next in 98 % of studies (Brown, Cai and DasGupta 2001, Statistical Science
# 16:101): the mean over rates is what an interval can be held to.
_SPREAD = 0.5
# Where fewer games differ, a difference is held more often than it must (docs/statistics.md).
FEW = 8
# Name -> least and greatest rate, and what is planted: the edges of a rate.
EDGES: Mapping[str, tuple[float, float, Truth]] = {
    "0 of n: rates of 0 to 10 %": (0.0, 0.1, _DEMO),
    "n of n: rates of 90 to 100 %": (0.9, 1.0, _DEMO),
    # The game decides: its states agree, for one game cannot show whether they do.
    "one game: rates of 0 to 100 %": (0.0, 1.0, replace(_DEMO, games=1, game=9.0)),
}


@dataclass(frozen=True)
class Row:
    """One scenario.

    Attributes:
      held: column -> share of the intervals that hold the truth.
      few: columns of differences of which fewer than FEW games of a seed differ, on average.
    """

    scenario: str
    unit: str
    seeds: int
    held: dict[str, float]
    few: frozenset[str] = frozenset()


def coverage(
    studies: int,
    seeds: Sequence[int] = (1, 3),
    scenarios: Mapping[str, Truth] = SCENARIOS,
) -> Iterator[Row]:
    """Yield a row for every scenario, for D3 (one state of a game) and D1, and number of seeds.

    With one seed, the truth is that of its seed: a study of one seed says nothing of others, so
    seeds do not differ there.
    """
    for name, truth in scenarios.items():
        for unit, states in _units(truth):
            for number in seeds:
                yield _row(name, unit, _planted(truth, states, number), studies)


def edges(studies: int, seeds: Sequence[int] = (1, 3)) -> Iterator[Row]:
    """Yield rows of rates near 0 and 1, and of one game, evenly spread over their limits."""
    for name, (least, greatest, truth) in EDGES.items():
        for unit, states in _units(truth):
            for number in seeds:
                rng, planted = np.random.default_rng(5), _planted(truth, states, number)
                held = []
                for rate in rng.uniform(least, greatest, studies):
                    drawn = replace(planted, first=(rate, rate), last=((rate, rate),)).draw(rng)
                    held.append(_holds(statistics.rate(*drawn[0, "last", "cot"]), rate))
                yield Row(name, unit, number, {"rates": float(np.mean(held))})


def _units(truth: Truth) -> list[tuple[str, tuple[int, int]]]:
    """Return the measures and their states of a game; a scenario with states of its own is D1."""
    return [("D3", (1, 1)), ("D1", _D1)] if truth.states == (1, 1) else [("D1", truth.states)]


def _planted(truth: Truth, states: tuple[int, int], seeds: int) -> Truth:
    deviation = truth.seed_deviation if seeds > 1 else 0.0
    return replace(truth, states=states, seeds=seeds, seed_deviation=deviation)


def _moved(truth: Truth, rng: np.random.Generator) -> Truth:
    """Return the scenario with rates of one study; those that are equal stay so."""
    rates = sorted({*truth.first, *(rate for each in truth.last for rate in each)})
    logits = np.log(rates) - np.log1p(-np.array(rates))
    moved = special.expit(logits + rng.uniform(-_SPREAD, _SPREAD, len(rates)))
    new = dict(zip(rates, moved.tolist(), strict=True))
    first, *last = ((new[cot], new[prompt]) for cot, prompt in (truth.first, *truth.last))
    return replace(truth, first=first, last=tuple(last))


def _row(name: str, unit: str, truth: Truth, studies: int) -> Row:
    rng = np.random.default_rng(5)
    held: dict[str, list[bool]] = {column: [] for column in COLUMNS}
    differ: dict[str, list[float]] = {}
    for _ in range(studies):
        planted = _moved(truth, rng)
        drawn = planted.draw(rng)
        for column, inside in _inside(drawn, planted.rates):
            held[column].append(inside)
        for column, games in _differing(drawn):
            differ.setdefault(column, []).append(games)
    shares = {column: float(np.mean(each)) for column, each in held.items() if each}
    few = frozenset(column for column, each in differ.items() if np.mean(each) < FEW)
    return Row(name, unit, truth.seeds, shares, few)


def _inside(drawn: Drawn, rates: Mapping[Policy, float]) -> Iterator[tuple[str, bool]]:
    """Yield column and whether the interval holds the truth, of one simulated study."""
    for policy in ((0, "first", "prompt"), (0, "last", "cot"), (0, "last", "prompt")):
        yield "rates", _holds(statistics.rate(*drawn[policy]), rates[policy])
    by = {kind: rates[0, "last", kind] - rates[0, "first", kind] for kind in ("cot", "prompt")}
    gap = rates[0, "last", "cot"] - rates[0, "last", "prompt"]
    yield "gap", _holds(statistics.contrast(_gap_of(drawn)), gap)
    for kind in by:
        yield "change", _holds(statistics.contrast(change_of(drawn, kind)), by[kind])
    moved = statistics.contrast(gap_change_of(drawn))
    yield "change of gap", _holds(moved, by["cot"] - by["prompt"])
    if by["cot"]:
        gain = Gain(change_of(drawn, "prompt"), change_of(drawn, "cot"))
        # Fieller's interval holds a share that is not rejected.
        beyond = gain.beyond(by["prompt"] / by["cot"])
        yield "share", beyond is not None and beyond.estimate().sign == 0
    yield "arms", _holds(statistics.contrast(_arms_of(drawn)), 0.0)


def _differing(drawn: Drawn) -> Iterator[tuple[str, float]]:
    """Yield column and number of games that differ; a share has the fewer of its two changes."""
    changes = [_games(change_of(drawn, kind)) for kind in ("cot", "prompt")]
    yield "gap", _games(_gap_of(drawn))
    yield "change", min(changes)
    yield "change of gap", _games(gap_change_of(drawn))
    yield "share", min(changes)
    yield "arms", _games(_arms_of(drawn))


def _games(terms: Sequence[Term]) -> float:
    """Return how many games differ, as a mean over seeds."""
    seeds = max(len(totals) for _, totals, _ in terms)
    moved = sum(weight * np.asarray(totals) for weight, totals, _ in terms)
    return np.count_nonzero(moved) / seeds


def _gap_of(drawn: Drawn) -> list[Term]:
    return [(1, *drawn[0, "last", "cot"]), (-1, *drawn[0, "last", "prompt"])]


def _arms_of(drawn: Drawn) -> list[Term]:
    return [(1, *drawn[0, "last", "cot"]), (-1, *drawn[1, "last", "cot"])]


def _holds(found: Estimate, truth: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low - 1e-9 <= truth <= found.high + 1e-9


# ---- the rules that were compared

# Influences [seeds, games] of an estimate -> how far its interval reaches.
Rule = Callable[[np.ndarray], float]


def _over_games(influence: np.ndarray) -> float:
    return crossed_spread(influence.sum(0, keepdims=True)).half()


def _over_seeds(influence: np.ndarray) -> float:
    seeds = len(influence)
    variance = (influence.sum(1) ** 2).sum() * seeds / (seeds - 1)
    return float(np.sqrt(variance) * quantile(seeds - 1))


def _multiway(influence: np.ndarray) -> float:
    seeds, games = influence.shape
    by_game = (influence.sum(0) ** 2).sum() * games / (games - 1)
    by_seed = (influence.sum(1) ** 2).sum() * seeds / (seeds - 1)
    variance = max(by_game + by_seed - (influence**2).sum(), by_game, by_seed)
    return float(np.sqrt(variance) * quantile(min(seeds, games) - 1))


def _bootstrap(influence: np.ndarray, resamples: int = 400) -> float:
    """Return half the width of a percentile interval, games and seeds resampled independently."""
    rng = np.random.default_rng(0)
    seeds, games = (
        rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float) for n in influence.shape
    )
    values = np.einsum("bs,sg,bg->b", seeds, influence, games, optimize=True)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(high - low) / 2


def _howe(influence: np.ndarray) -> float:
    parts = crossed_spread(influence).parts
    return float(np.sqrt(sum(variance * quantile(free) ** 2 for variance, free in parts)))


def _satterthwaite(influence: np.ndarray) -> float:
    spread = crossed_spread(influence)
    freedom = spread.variance**2 / sum(each**2 / free for each, free in spread.parts)
    return float(np.sqrt(spread.variance) * quantile(freedom))


RULES: Mapping[str, Rule] = {
    "over games alone": _over_games,
    "t over seeds of differences paired by game": _over_seeds,
    "Cameron, Gelbach and Miller, t of min(games, seeds) - 1": _multiway,
    "bootstrap of games and seeds": _bootstrap,
    "games and seeds crossed, squares of the quantiles weighed": _howe,
    "games and seeds crossed, Satterthwaite's freedoms": _satterthwaite,
    "games and seeds crossed, quantiles weighed (in use)": lambda each: crossed_spread(each).half(),
}


@dataclass(frozen=True)
class RuleRow:
    """A rule at one deviation of seeds: shares of the intervals that hold the truth."""

    rule: str
    seed_deviation: float
    seeds: int
    change: float
    arms: float


def compare_rules(
    studies: int, seeds: Sequence[int] = (3,), deviations: Sequence[float] = (0.0, 0.3)
) -> Iterator[RuleRow]:
    """Yield how often each rule holds the change of a prompt action, and a difference of 0."""
    for number in seeds:
        for deviation in deviations:
            truth = replace(_DEMO, states=_D1, seeds=number, seed_deviation=deviation)
            moved = truth.rates[0, "last", "prompt"] - truth.rates[0, "first", "prompt"]
            held: dict[str, list[tuple[bool, bool]]] = {rule: [] for rule in RULES}
            rng = np.random.default_rng(6)
            for _ in range(studies):
                drawn = truth.draw(rng)
                change = _influences(change_of(drawn, "prompt"))
                arms = _influences(_arms_of(drawn))
                for rule, half in RULES.items():
                    inside = (
                        abs(change[0] - moved) <= half(change[1]),
                        abs(arms[0]) <= half(arms[1]),
                    )
                    held[rule].append(inside)
            for rule, each in held.items():
                yield RuleRow(rule, deviation, number, *map(float, np.mean(each, axis=0)))


def _influences(terms: Sequence[Term]) -> tuple[float, np.ndarray]:
    """Return a sum of ratios, and what each game under each seed adds to its error."""
    value, influence = 0.0, np.zeros(())
    seeds = max(len(totals) for _, totals, _ in terms)
    for weight, totals, counts in terms:
        # What has one row belongs to every seed.
        sums, number = (np.repeat(each, seeds // len(each), axis=0) for each in (totals, counts))
        ratio = sums.sum() / number.sum()
        value += weight * ratio
        influence = influence + weight * (sums - ratio * number) / number.sum()
    return float(value), influence


# ---- exact, without simulation


def exact_wilson(n: int) -> tuple[float, float]:
    """Return the mean and the least share of Wilson's intervals of n games that hold the rate."""
    ends = [statistics.wilson(each / n, n) for each in range(n + 1)]
    return _exact(ends, np.linspace(0.002, 0.998, 499))


def exact_gain(n: int, most: int = 6) -> tuple[float, float]:
    """Return the mean and the least share of intervals of a difference that hold it, at its edge.

    Of n games one policy wins some that the other loses, and never the reverse. The differences
    are evenly spread from 0 to that of `most` games.
    """
    none, ones = np.zeros(n), np.ones(n)
    found = [
        statistics.contrast([(1, np.arange(n) < won, ones), (-1, none, ones)])
        for won in range(n + 1)
    ]
    return _exact([(each.low, each.high) for each in found], np.linspace(0, most / n, 500)[1:])


def _exact(
    ends: Sequence[tuple[float | None, float | None]], rates: np.ndarray
) -> tuple[float, float]:
    """Return the mean and the least coverage of the intervals of 0, 1, ... events, over rates."""
    low, high = np.array(ends, dtype=float).T[..., None]
    n = len(ends) - 1
    inside = (low <= rates) & (rates <= high)
    held = (stats.binom.pmf(np.arange(n + 1)[:, None], n, rates) * inside).sum(0)
    return float(held.mean()), float(held.min())


# ---- tables


def print_coverage(studies: int, say: Callable[[str], None]) -> None:
    """Print the coverage of every interval in percent, as a Markdown table, row by row.

    A star is at differences of few games.
    """
    say(f"| scenario | measure | seeds | {' | '.join(COLUMNS)} |")
    say("|---" * (3 + len(COLUMNS)) + "|")
    for row in itertools.chain(coverage(studies), edges(studies)):
        cells = (
            f"{100 * row.held[column]:.1f}{'*' * (column in row.few)}"
            if column in row.held
            else "–"
            for column in COLUMNS
        )
        say(f"| {row.scenario} | {row.unit} | {row.seeds} | {' | '.join(cells)} |")
    for n in (20, 60):
        held, least = exact_wilson(n)
        say(f"exact, a rate of {n} games: mean {100 * held:.1f}, least {100 * least:.1f}")
    for n in (12, 20, 60):
        held, least = exact_gain(n)
        say(
            f"exact, a difference of up to 6 of {n} games: mean {100 * held:.1f}, "
            f"least {100 * least:.1f}"
        )


def print_rules(studies: int, say: Callable[[str], None]) -> None:
    """Print how often each rule for games and seeds holds the truth, as a Markdown table."""
    say("| rule | seeds | seed deviation, logits | change of D1 | difference of arms |")
    say("|---|---|---|---|---|")
    for row in compare_rules(studies):
        say(
            f"| {row.rule} | {row.seeds} | {row.seed_deviation:g} | {100 * row.change:.1f} "
            f"| {100 * row.arms:.1f} |"
        )
