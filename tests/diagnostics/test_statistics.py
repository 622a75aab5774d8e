"""Intervals: known values, their edges, and that they hold the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cotjax.diagnostics.statistics import (
    NOTHING,
    bonett_price,
    contrast,
    mean,
    rate,
    sign_test,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 60), (1, 7), (30, 60), (59, 60), (60, 60)])
def test_wilson_is_scipys(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high))


def test_wins_of_all_games_are_no_certainty():
    won = rate([1] * 60, [1] * 60)
    assert (won.value, won.high, won.n, won.games) == (1.0, 1.0, 60, 60)
    assert won.low == pytest.approx(60 / (60 + 1.959964**2), abs=1e-6)  # Wilson at k = n
    never = rate(
        [0] * 60, [10] * 60
    )  # 600 states, but 60 games: the states of a game are not taken as independent
    assert (never.value, never.low, never.n) == (0.0, 0.0, 600)
    assert never.high == pytest.approx(1.959964**2 / (60 + 1.959964**2), abs=1e-6)


def test_no_games_is_nothing_and_not_nan():
    assert (
        rate([], [])
        == rate([0.0], [0])
        == mean([], [], 5)
        == contrast([(1, [], []), (-1, [], [])])
        == NOTHING
    )
    assert contrast([(1, [1.0], [1]), (-1, [0.0], [0])]) == NOTHING  # no game on both sides
    assert NOTHING.value is NOTHING.low is NOTHING.high is None


def test_clustered_states_count_for_less_than_independent_ones():
    totals, counts = (
        np.array([10] * 15 + [0] * 15),
        np.full(30, 10),
    )  # a game is all right or all wrong
    clustered, independent = rate(totals, counts), wilson(0.5, 300)
    assert clustered.high - clustered.low > 2.5 * (independent[1] - independent[0])
    assert (clustered.low, clustered.high) == pytest.approx(wilson(0.5, 30), abs=0.03)


def test_paired_difference_agrees_with_mcnemar():
    """4 discordant games of 60, all one way: p = 0.125, the interval has 0. 9: p = 0.004, no 0."""
    for discordant, clear in ((4, False), (9, True)):
        cot = np.array([1] * discordant + [1] * 20 + [0] * (40 - discordant))
        prompt = np.array([0] * discordant + [1] * 20 + [0] * (40 - discordant))
        gap = contrast([(1, cot, np.ones(60)), (-1, prompt, np.ones(60))])
        assert gap.value == pytest.approx(discordant / 60)
        assert (gap.low > 0) is clear
        assert (sign_test(cot - prompt) < 0.05) is clear
    assert sign_test([1, 1, 1, 1, 0, 0]) == pytest.approx(0.125)
    assert sign_test([0, 0]) == sign_test([]) == 1.0


def test_a_few_states_that_differ_are_no_clear_difference():
    """4 states of 600 differ, in four games, all one way: p = 0.125, yet a bootstrap excludes 0."""
    counts, first = np.full(60, 10), np.array([6] * 4 + [5] * 56)
    found = contrast([(1, first, counts), (-1, np.full(60, 5), counts)])
    assert found.value == pytest.approx(4 / 600)
    assert found.low < 0 < found.high < 0.03


def test_bonett_price_by_hand():
    """b = 9, c = 2 of n = 50: (b + 1 - c - 1) / (n + 2) = 7/52; variance (13/52 - (7/52)²) / 52."""
    half = 1.959964 * math.sqrt((13 / 52 - (7 / 52) ** 2) / 52)
    assert bonett_price(7, 11, 50) == pytest.approx((7 / 52 - half, 7 / 52 + half), abs=1e-6)


def test_equal_answers_leave_a_difference_with_a_width():
    same = contrast([(1, [5.0] * 30, [10] * 30), (-1, [5.0] * 30, [10] * 30)])
    assert same.value == 0 and same.low < -0.01 and same.high > 0.01


def test_change_of_a_gap_sums_four_terms():
    games = np.ones(20)
    terms = [
        (1, games, games),
        (-1, games * 0, games),
        (-1, games * 0, games),
        (1, games * 0, games),
    ]
    change = contrast(terms)
    assert change.value == 1.0 and change.low > 0.6 and change.high <= 2


def test_mean_stays_within_its_bounds():
    assert mean([30.0] * 12, [1] * 12, 30).high == 30
    assert 20 < mean([30.0] * 12, [1] * 12, 30).low < 30
    spread = mean([10.0, 20.0, 30.0] * 8, [1] * 24, 30)
    assert spread.value == 20 and 15 < spread.low < 18 and 22 < spread.high < 25


def test_a_signed_mean_stays_within_its_bounds_and_mirrors():
    """A quantity from -1 to 1 has the intervals of its negative, turned around."""
    for totals in ([0.0] * 12, [1.0] * 12, [0.5] * 3, [-1.0, 1.0, 0.5] * 8):
        found = mean(totals, [1] * len(totals), 1, -1)
        mirrored = mean([-each for each in totals], [1] * len(totals), 1, -1)
        assert -1 <= found.low < found.high <= 1
        assert (-found.high, -found.low) == pytest.approx((mirrored.low, mirrored.high), abs=0.01)
    # No game moved: Wilson's interval of one half over 12 games, stretched from -1 to 1.
    low, high = (2 * edge - 1 for edge in wilson(0.5, 12))
    unmoved = mean([0.0] * 12, [1] * 12, 1, -1)
    assert (unmoved.low, unmoved.high) == pytest.approx((low, high))
    assert mean([-4.0] * 5, [2] * 5, 1, -3).low >= -3


def test_the_same_numbers_give_the_same_interval():
    totals, counts = np.arange(20) % 5, np.full(20, 6)
    assert mean(totals, counts, 6) == mean(totals, counts, 6)


_games = st.lists(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(_games)
def test_intervals_hold_their_value_and_have_a_width(games):
    first, second, counts = (np.array(column) for column in zip(*games, strict=True))
    share = rate(first, counts)
    assert 0 <= share.low <= share.value <= share.high <= 1 and share.low < share.high
    difference = contrast([(1, first, counts), (-1, second, counts)])
    assert (
        -1 <= difference.low <= difference.value <= difference.high <= 1
        and difference.low < difference.high
    )
    average = mean(first, counts, 9)
    assert 0 <= average.low <= average.value <= average.high and average.low < average.high


@pytest.mark.parametrize(("p", "concentration"), [(0.5, 3), (0.9, 3), (0.9, 1000)])
def test_coverage_of_a_share_over_clustered_states(p, concentration):
    random, held = np.random.default_rng(7), 0
    for _ in range(400):
        counts = random.integers(5, 20, 40)
        found = rate(
            random.binomial(counts, random.beta(p * concentration, (1 - p) * concentration, 40)),
            counts,
        )
        held += found.low <= p <= found.high
    assert 0.90 <= held / 400 <= 0.99


@pytest.mark.parametrize(("up", "down"), [(0.05, 0.05), (0.25, 0.1)])
def test_coverage_of_a_gap(up, down):
    random, held = np.random.default_rng(8), 0
    for _ in range(400):
        difference = random.choice([1, -1, 0], p=[up, down, 1 - up - down], size=60)
        both = (difference == 0) & (random.random(60) < 0.6)
        cot = (difference == 1) | both
        found = contrast([(1, cot, np.ones(60)), (-1, cot - difference, np.ones(60))])
        held += found.low <= up - down <= found.high
    assert held / 400 >= 0.92


def test_coverage_of_a_paired_difference_over_states():
    random, held = np.random.default_rng(9), 0
    for _ in range(150):
        counts = random.integers(5, 20, 40)
        helpful = random.binomial(counts, random.beta(2, 18, 40))  # 10 % of the states
        harmful = random.binomial(counts - helpful, 0.05)
        both = random.binomial(counts - helpful - harmful, 0.7)
        found = contrast([(1, helpful + both, counts), (-1, harmful + both, counts)])
        held += found.low <= 0.1 - 0.9 * 0.05 <= found.high
    assert held / 150 >= 0.90


def test_a_share_over_states_has_the_interval_of_its_effective_number_of_states():
    hits, states = np.array([1.0, 4, 2, 7, 3, 6]), np.array([5, 8, 6, 10, 7, 9])
    value = 23 / 45
    # The linearised variance of a ratio over games, the number of independent states that would
    # have this variance, and t for six games.
    variance = sum((h - value * s) ** 2 for h, s in zip(hits, states, strict=True)) * 6 / 5 / 45**2
    size = value * (1 - value) / variance / (stats.t.ppf(0.975, 5) / stats.norm.ppf(0.975)) ** 2
    expected = wilson(value, min(45, size))
    found = rate(hits, states)
    assert (found.value, found.n, found.games) == (pytest.approx(value), 45, 6)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert size < 45
