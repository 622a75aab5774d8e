"""Intervals: known values, their edges, and that they hold the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cotjax.diagnostics.crossed import Spread, crossed_spread
from cotjax.diagnostics.statistics import (
    NOTHING,
    combine,
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
    never = rate([0] * 60, [10] * 60)
    # Ten states of a game, alike by 0.1: a design effect of 1.9.
    assert (never.value, never.low, never.n) == (0.0, 0.0, 600)
    assert never.high == pytest.approx(1.959964**2 / (600 / 1.9 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize(
    "counts", [[1] * 60, [7] * 60, [18] * 60, [30] * 20, [3, 50, 7, 20] * 8, [2] * 5]
)
def test_the_first_failure_never_narrows_an_interval(counts):
    """Nor, by more than a hundredth, do the next: of shares, and of their difference from 1."""
    counts = np.array(counts)
    widths = []
    for failures in range(len(counts) // 3 + 1):
        failed = np.r_[np.ones(failures), np.zeros(len(counts) - failures)]
        share = rate(counts - failed, counts)
        apart = contrast([(1, counts - failed, counts), (-1, counts, counts)])
        widths.append((share.high - share.low, apart.high - apart.low))
    widened = np.diff(widths, axis=0) / widths[:-1]
    assert (widened[0] > 0).all() and (widened > -0.01).all()


def test_games_that_move_as_one_count_as_one_state():
    """Four games of ten states, all of them better: p = 0.125, and no clear difference."""
    first, counts = np.r_[np.full(4, 10), np.zeros(56)], np.full(60, 10)
    found = contrast([(1, first, counts), (-1, np.zeros(60), counts)])
    assert found.low < 0 and found.high > 4 / 60
    scattered = contrast([(1, np.r_[np.ones(40), np.zeros(20)], counts), (-1, 0 * counts, counts)])
    assert scattered.value == found.value and scattered.low > 0
    # A gain of 3 states in each of the games is not 30 states that move as one game.
    shared = combine([(1, np.full(60, 8), counts), (-1, np.full(60, 5), counts)])
    assert shared.centre == pytest.approx(0.3, abs=0.002) and shared.estimate().low > 0.29


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
    assert sign_test([1, 1, 1, 1, -1]) == sign_test([-1, 1, -1, -1, -1]) == pytest.approx(12 / 32)
    assert sign_test([0, 0]) == sign_test([]) == 1.0
    # Of three samples: no game moved, whatever floating point says.
    assert 1 - 2 / 3 - 1 / 3 > 0 and sign_test([1 - 2 / 3 - 1 / 3] * 8) == 1.0


def test_a_value_is_within_its_interval_whatever_the_limits_are():
    """A server may count more tokens than were allowed; a sum may be of one ratio alone."""
    counts = np.ones(20)
    beyond = contrast([(1, np.full(20, 25.0), counts), (-1, np.zeros(20), counts)], 10)
    assert beyond.value == beyond.high == 25 and beyond.low < 25
    alone = combine([(1, np.r_[np.ones(19), 0], counts)]).estimate()
    assert alone.low < alone.value == pytest.approx(0.95) and 0.95 < alone.high <= 1


def test_a_few_states_that_differ_are_no_clear_difference():
    """4 states of 600 differ, in four games, all one way: p = 0.125, yet a bootstrap excludes 0."""
    counts, first = np.full(60, 10), np.array([6] * 4 + [5] * 56)
    found = contrast([(1, first, counts), (-1, np.full(60, 5), counts)])
    assert found.value == pytest.approx(4 / 600)
    assert found.low < 0 < found.high < 0.03


def test_a_paired_difference_by_hand():
    """b = 9, c = 2 of n = 50: Agresti and Min's centre 7/52, half of each in the variance."""
    first, second = np.r_[np.ones(9), np.zeros(41)], np.r_[np.zeros(48), np.ones(2)]
    combined = combine([(1, first, np.ones(50)), (-1, second, np.ones(50))])
    assert (combined.value, combined.centre) == (pytest.approx(7 / 50), pytest.approx(7 / 52))
    seen = (11 - 7**2 / 50) / 49 / 50 * (50 / 52) ** 2
    half = (stats.t.ppf(0.975, 49) * seen + 1.959964 / 52**2) / math.sqrt(seen + 1 / 52**2)
    found = combined.estimate()
    assert (found.low, found.high) == pytest.approx((7 / 52 - half, 7 / 52 + half), abs=1e-6)
    # Nearly theirs, whose halves are in a variance with one quantile.
    theirs = 1.959964 * math.sqrt((12 / 52 - (7 / 52) ** 2) / 52)
    assert half == pytest.approx(theirs, rel=0.04)


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


def test_equal_means_have_a_width_that_the_number_of_states_decides():
    """5 tokens in all of 1,080 responses of 60 games, where 16 are possible: not [2.1, 11.1]."""
    found = mean([5.0 * 18] * 60, [18] * 60, 16)
    assert 4.9 < found.low < 5 < found.high < 5.1


def test_mean_stays_within_its_bounds():
    assert mean([30.0] * 12, [1] * 12, 30).high == 30
    assert 20 < mean([30.0] * 12, [1] * 12, 30).low < 30
    assert mean([30.0], [1], 20).high == 30  # a limit that was wrong
    spread = mean([10.0, 20.0, 30.0] * 8, [1] * 24, 30)
    assert spread.value == 20 and 15 < spread.low < 18 and 22 < spread.high < 25


def test_a_signed_mean_stays_within_its_bounds_and_mirrors():
    """A quantity from -1 to 1 has the intervals of its negative, turned around."""
    for totals in ([0.0] * 12, [1.0] * 12, [0.5] * 3, [0.5], [-1.0, 1.0, 0.5] * 8):
        found = mean(totals, [1] * len(totals), 1, -1)
        mirrored = mean([-each for each in totals], [1] * len(totals), 1, -1)
        assert -1 <= found.low < found.high <= 1
        assert (-found.high, -found.low) == pytest.approx((mirrored.low, mirrored.high), abs=1e-12)
    # No game moved: one more state on each limit, of a variance that is known.
    unmoved = mean([0.0] * 12, [1] * 12, 1, -1)
    assert unmoved.high == pytest.approx(1.959964 * math.sqrt(2) / 14, abs=1e-6)
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
    # The linearised variance of a ratio over games with t for six games, as a design effect, and
    # the assumed one, which weighs as many events as it says.
    variance = sum((h - value * s) ** 2 for h, s in zip(hits, states, strict=True)) * 6 / 5 / 45**2
    wide = (stats.t.ppf(0.975, 5) / stats.norm.ppf(0.975)) ** 2
    seen = variance * wide / (value * (1 - value) / 45)
    assumed = 1 + 0.1 * ((states**2).sum() / 45 - 1)
    weight = 3 * (assumed - 1) + 1
    effect = (22 * seen + weight * assumed) / (22 + weight)
    found = rate(hits, states)
    assert (found.value, found.n, found.games) == (pytest.approx(value), 45, 6)
    assert seen > 1 and effect > 1.5
    assert (found.low, found.high) == pytest.approx(wilson(value, 45 / effect), abs=1e-12)


# ---- games and seeds


def crossed(rng, games=60, seeds=3, of_seeds=0.1):
    """Return hits of two policies, [seeds, games], and their counts."""
    ease = rng.normal(size=games) * 0.2
    rates = 0.5 + ease + of_seeds * rng.normal(size=(2, seeds, 1))
    return (rng.random((2, seeds, games)) < rates).astype(float), np.ones((seeds, games))


def test_equal_seeds_leave_the_interval_over_games():
    """The same episodes under every seed are no more than those of one."""
    hits, counts = crossed(np.random.default_rng(0), seeds=1)
    again, many = np.repeat(hits, 3, axis=1), np.repeat(counts, 3, axis=0)
    once = combine([(1, hits[0], counts), (-1, hits[1], counts)])
    thrice = combine([(1, again[0], many), (-1, again[1], many)])
    assert (thrice.value, thrice.seeds, thrice.n) == (pytest.approx(once.value), 3, 180)
    assert thrice.spread.half() == pytest.approx(once.spread.half(), rel=0.02)


def test_seeds_that_differ_widen_an_interval():
    """All games go up under one seed and down under another: games alone would say 0 for sure."""
    up = np.array([[1.0] * 40, [0.0] * 40, [0.5] * 40])
    counts = np.ones((3, 40))
    found = contrast([(1, up, counts), (-1, np.full((3, 40), 0.5), counts)])
    assert found.value == 0 and found.high > 0.9
    together = contrast([(1, up.mean(0), counts[0]), (-1, np.full(40, 0.5), counts[0])])
    assert together.high < 0.1
    assert rate(up, counts).high - rate(up, counts).low > 0.7


def test_the_parts_of_a_spread_by_hand():
    """Mean squares of games, of seeds and of the rest; three quarters of the rest are taken off."""
    influence = np.random.default_rng(3).normal(size=(4, 7))
    influence -= influence.mean()
    games, seeds = influence.sum(0), influence.sum(1)
    by_game, by_seed = games @ games * 7 / 6, seeds @ seeds * 4 / 3
    left = influence - influence.mean(0) - influence.mean(1)[:, None]
    rest = (left**2).sum() * 28 / 18
    spread = crossed_spread(influence)
    assert spread.parts[0] == (pytest.approx(by_game), 6)
    assert spread.parts[1] == (pytest.approx(by_seed - 0.75 * rest), 3)
    assert spread.variance == pytest.approx(by_game + by_seed - 0.75 * rest)
    weighed = stats.t.ppf(0.975, 6) * by_game + stats.t.ppf(0.975, 3) * (by_seed - 0.75 * rest)
    assert spread.half() == pytest.approx(weighed / math.sqrt(spread.variance))
    one_seed = crossed_spread(games[None])
    assert one_seed.parts == ((pytest.approx(by_game), 6),)
    assert crossed_spread(np.zeros((3, 1))).parts == ()


def test_a_p_value_belongs_to_the_interval():
    """At a p of 0.05 the interval ends at 0; below, it excludes it."""
    spread = Spread(((0.5, 4.0), (0.2, 2.0), (0.1, np.inf)))
    assert 2 * spread.p_above(spread.half()) == pytest.approx(0.05)
    assert spread.p_above(0) == 0.5 and spread.p_above(1e9) < 1e-9
    assert spread.p_above(-1) == pytest.approx(1 - spread.p_above(1))
    assert Spread(((2.0, 9.0),)).p_above(3) == pytest.approx(stats.t.sf(3 / math.sqrt(2), 9))
    assert spread.times(2).half() == pytest.approx(2 * spread.half())
    random = np.random.default_rng(5)
    for _ in range(20):
        hits, counts = crossed(random, games=20)
        combined = combine([(1, hits[0], counts), (-1, hits[1], counts)])
        assert (combined.p < 0.05) == (combined.estimate().sign != 0)
        assert combined.p_above(0) == pytest.approx(
            combined.p / 2 if combined.value > 0 else 1 - combined.p / 2
        )


def test_a_policy_without_seeds_goes_with_each():
    """The base is one, whatever the number of seeds: its games are no more than they are."""
    hits, counts = crossed(np.random.default_rng(1))
    base = hits[1, :1]
    one_row = combine([(1, hits[0], counts), (-1, base, counts[:1])])
    every_row = combine([(1, hits[0], counts), (-1, np.repeat(base, 3, axis=0), counts)])
    assert one_row == every_row
    assert one_row.value == pytest.approx(hits[0].mean() - base.mean())


def test_a_game_that_one_seed_lacks_is_left_out_of_that_seed():
    hits, counts = crossed(np.random.default_rng(2), games=5)
    counts[0, 2] = 0
    hits[0, 0, 2] = 1e9  # nothing of it may be seen
    found = contrast([(1, hits[0], counts), (-1, hits[1], np.ones((3, 5)))])
    kept = counts > 0
    assert (found.n, found.games, found.seeds) == (14, 5, 3)
    assert found.value == pytest.approx(hits[0][kept].mean() - hits[1][kept].mean())


def test_a_span_stretches_the_interval_of_a_mean():
    hits, counts = crossed(np.random.default_rng(4))
    plain = contrast([(1, hits[0], counts), (-1, hits[1], counts)])
    wide = contrast([(1, 7 * hits[0], counts), (-1, 7 * hits[1], counts)], 7)
    assert (wide.value, wide.low, wide.high) == pytest.approx(
        (7 * plain.value, 7 * plain.low, 7 * plain.high)
    )


@pytest.mark.parametrize("totals", [[1.0], [0.0], [0.5]])
def test_one_game_says_little(totals):
    share, apart = rate(totals, [1]), contrast([(1, totals, [1]), (-1, [0.5], [1])])
    assert share.high - share.low > 0.7 and apart.low < -0.4 and apart.high > 0.4
    many = rate([10 * totals[0]], [10])
    assert (many.low, many.high) == (share.low, share.high)
