"""Coverage: in simulated studies of known rates, intervals hold the truth as often as they say."""

import numpy as np
import pytest

from cotjax.bench.coverage import COLUMNS, RULES, SCENARIOS, compare_rules, coverage, exact_wilson
from cotjax.diagnostics.simulated import Truth

STUDIES = 120


def test_a_planted_rate_is_the_mean_over_games_and_seeds():
    truth = Truth((0.3, 0.2), ((0.7, 0.4),), games=400, seeds=60, states=(2, 6))
    drawn = truth.draw(np.random.default_rng(0))
    for policy, rate in truth.rates.items():
        totals, counts = drawn[policy]
        assert totals.shape == (1 if policy[1] == "first" else 60, 400)
        assert totals.sum() / counts.sum() == pytest.approx(rate, abs=0.04)
    # Seeds differ by 0.3 logits, which at these rates is some 5 to 6 points.
    by_seed = drawn[0, "last", "cot"][0].sum(1) / drawn[0, "last", "cot"][1].sum(1)
    assert 0.02 < by_seed.std() < 0.08


@pytest.mark.parametrize("scenario", ["demo-like, 20 games", "nothing was learned", "rare events"])
def test_intervals_hold_the_truth_over_games_and_seeds(scenario):
    """Three seeds that differ by 0.3 logits. Of 240 studies a share has an error of 1.4 points."""
    rows = list(coverage(STUDIES, seeds=(3,), scenarios={scenario: SCENARIOS[scenario]}))
    for column in COLUMNS:
        held = [row.held[column] for row in rows if column in row.held]
        assert not held or np.mean(held) > 0.9, column
    overall = np.mean([each for row in rows for each in row.held.values()])
    assert 0.93 <= overall <= 0.985


def test_the_rule_in_use_holds_where_others_do_not():
    """Games alone and seeds alone are too sure; min(games, seeds) - 1 freedoms never are."""
    rows = {row.rule: row for row in compare_rules(STUDIES, seeds=(3,), deviations=(0.3,))}
    games, seeds, multiway, _, in_use = (rows[rule] for rule in RULES)
    assert games.arms < 0.85 and seeds.change < 0.93
    assert min(multiway.change, multiway.arms) > 0.97
    assert min(in_use.change, in_use.arms) > 0.9


def test_wilson_of_all_rates_is_exact_on_average():
    mean, least = exact_wilson(60)
    assert 0.945 < mean < 0.96 and least > 0.8


@pytest.mark.slow
def test_coverage_of_all_scenarios():
    """The table of docs/statistics.md with fewer studies (`cotjax bench coverage` prints it)."""
    for row in coverage(300, seeds=(3,)):
        print(row)
        assert all(held > 0.9 for held in row.held.values())
        assert np.mean(list(row.held.values())) >= 0.93
