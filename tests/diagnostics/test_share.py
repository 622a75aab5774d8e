"""Where a gain landed: Fieller's interval, the rules of the verdict, and planted truths."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cotjax.diagnostics.metrics import Point, Pool, combine, contrast
from cotjax.diagnostics.share import (
    MISSING,
    Gain,
    Verdict,
    decide,
    equivalence_p,
    holm,
    on_the_floor,
    place_gain,
    share_of_gain,
)
from cotjax.diagnostics.statistics import Estimate

NAMES = ("d1_cot", "d1_prompt", "d1_gap")
# Share of the gain in the prompt action -> the verdicts that are right.
PLANTED = {
    0.0: (Verdict.ADVANTAGE,),
    1 / 3: (Verdict.ADVANTAGE, Verdict.BOTH),
    0.5: (Verdict.BOTH,),
    1.0: (Verdict.PROMPT,),
}
RATES = {"d3_cot": 0, "d3_prompt": 1, "d1_cot": 0, "d1_prompt": 1}


def two_points(hits_first, hits_last):
    """Return two points; hits [games, states, 2] of the CoT and of the prompt action."""
    points = []
    for hits in (hits_first, hits_last):
        cells = {
            name: {
                (f"g{game}", 0): [float(of_game[:, column].sum()), len(of_game)]
                for game, of_game in enumerate(hits)
            }
            for name, column in RATES.items()
        }
        points.append(Point(cells=cells))
    return points


def simulate(rng, games, states, part, gain, cot=0.25, prompt=0.2):
    """Return two points of a study whose gain by CoT actions is `part` in the prompt action.

    The four outcomes of a state share what makes its game and the state itself easy.
    """
    game = rng.normal(size=(games, 1, 1)) * 0.6
    state = rng.normal(size=(games, states, 1)) * 0.8
    own = rng.normal(size=(games, states, 4))
    ease = stats.norm.cdf((game + state + own) / np.sqrt(0.36 + 0.64 + 1))
    hits = ease < np.array([cot, prompt, cot + gain, prompt + part * gain])
    return two_points(hits[..., :2], hits[..., 2:])


def compared_with_zero(first, last):
    """Place a gain as one would without an interval of its share, by three comparisons with 0."""
    total, prompt, gap = (
        contrast([(1, last, name), (-1, first, name)]).sign
        for name in ("d3_cot", "d3_prompt", "gap")
    )
    if total <= 0:
        return Verdict.NO_GAIN
    return {
        (True, True): Verdict.BOTH,
        (True, False): Verdict.PROMPT,
        (False, True): Verdict.ADVANTAGE,
        (False, False): Verdict.UNPLACED,
    }[prompt > 0, gap > 0]


def test_the_share_is_that_of_the_rates():
    """From 1/4 to 3/4 by CoT actions, from 0 to 1/4 by prompt actions: half of the gain."""
    first, last = np.zeros((40, 4, 2)), np.zeros((40, 4, 2))
    first[:, 0, 0] = last[:, :3, 0] = last[:, 0, 1] = 1
    placed = place_gain(*two_points(first, last), *NAMES)
    assert placed.share.value == pytest.approx(0.5)
    assert placed.total.value == pytest.approx(placed.prompt.value + placed.gap.value)
    assert (placed.share.n, placed.share.games) == (160, 40)
    # No game differs from another, and yet the interval has a width.
    assert 0.4 < placed.share.low < 0.5 < placed.share.high < 0.6
    assert placed.verdict is Verdict.BOTH


def test_fieller_solves_its_definition():
    """At both ends the difference part - s whole is as far from 0 as its interval reaches."""
    gain = Gain.of(*simulate(np.random.default_rng(4), 60, 5, 0.4, 0.3), *NAMES[:2])
    share = gain.share
    assert share.low < share.value < share.high
    for end in (share.low, share.high):
        assert gain.beyond(end).p == pytest.approx(0.05)
    assert gain.p(share.value) > 0.99 and gain.p(share.high + 0.1) < 0.05
    assert share.value == pytest.approx(gain.beyond(0).value / gain.total.value)


def test_a_share_of_no_clear_gain_has_no_bounds():
    gain = Gain.of(*simulate(np.random.default_rng(4), 20, 1, 0.4, 0.02), *NAMES[:2])
    assert gain.total.p > 0.05 and gain.share.measured
    assert gain.share.low is gain.share.high is None


def test_a_share_holds_over_seeds_too():
    """Three seeds that differ: the share is less sure than that of one."""
    rng = np.random.default_rng(5)
    first, _ = simulate(rng, 60, 6, 0.5, 0.3)
    lasts = [simulate(rng, 60, 6, part, 0.3)[1] for part in (0.0, 0.5, 1.0)]
    seeds = share_of_gain(first, Pool(dict(enumerate(lasts))), *NAMES[:2])
    one = share_of_gain(first, lasts[1], *NAMES[:2])
    assert (seeds.seeds, seeds.games, seeds.n) == (3, 60, 3 * 360)
    assert seeds.low is None or seeds.high - seeds.low > 1.5 * (one.high - one.low)


def test_a_gap_that_stayed_is_shown_by_two_one_sided_tests():
    """The change lies within the margin where its 90 % interval does."""
    first, last = simulate(np.random.default_rng(6), 400, 4, 1.0, 0.3)
    placed = place_gain(first, last, *NAMES, margin=0.1)
    assert abs(placed.gap.value) < 0.04 and placed.steady_p < 1e-3
    assert place_gain(first, last, *NAMES, margin=0.001).steady_p > 0.05
    change = combine([(1, last, "d1_gap"), (-1, first, "d1_gap")])
    reach = change.spread.half(0.05)
    edge = max(abs(change.centre - reach), abs(change.centre + reach))
    assert equivalence_p(change, edge) == pytest.approx(0.05)
    assert equivalence_p(None, 0.1) == 1
    moved = place_gain(*simulate(np.random.default_rng(7), 400, 4, 0.0, 0.3), *NAMES)
    assert moved.steady_p > 0.99


def test_holm_by_hand():
    """Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.2 * 1, none below the one before."""
    assert holm([0.03, 0.2, 0.01, 0.02]) == pytest.approx([0.06, 0.2, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_a_family_shares_one_level():
    """What is placed alone is not among many: the level of 20 arms is a fortieth of one's."""
    rng = np.random.default_rng(8)
    weak = next(
        placed
        for _ in range(200)
        if 0.01 < (placed := place_gain(*simulate(rng, 60, 5, 0.2, 0.3), *NAMES)).p < 0.04
    )
    assert weak.verdict in (Verdict.ADVANTAGE, Verdict.BOTH)
    alone = decide({"a": weak})["a"]
    assert alone.adjusted_p == pytest.approx(min(2 * weak.p, max(weak.steady_p, 2 * weak.p)))
    none = replace(weak, levels={})
    many = decide({"a": weak} | {str(i): none for i in range(20)})
    assert many["a"].verdict is Verdict.UNPLACED and many["a"].adjusted_p > 0.05
    strong = place_gain(*simulate(rng, 400, 5, 0.0, 0.4), *NAMES)
    kept = decide({"a": strong} | {str(i): none for i in range(20)})
    assert kept["a"].verdict is Verdict.ADVANTAGE and kept["a"].adjusted_p < 0.01
    assert decide({"a": MISSING}) == {"a": MISSING}


@pytest.mark.parametrize(
    ("p", "verdict"), [(0.0249, "ADVANTAGE"), (0.0251, "UNPLACED"), (0.035, "UNPLACED")]
)
def test_two_tests_of_a_family_halve_the_level(p, verdict):
    """A verdict's p against what Holm's procedure leaves for it beside one that shows nothing."""
    total = Estimate(0.2, 0.1, 0.3, 60, 60)
    levels = {str(Verdict.ADVANTAGE): p}
    decided = decide({"a": replace(MISSING, verdict=Verdict.UNPLACED, total=total, levels=levels)})
    assert decided["a"].verdict is Verdict[verdict]
    assert decided["a"].adjusted_p == pytest.approx(2 * p)


def test_what_is_missing_is_no_evidence():
    assert MISSING.p == MISSING.adjusted_p == MISSING.steady_adjusted_p == 1.0
    assert not MISSING.steady and MISSING.at(1.0) is Verdict.MISSING


def test_one_on_the_floor_counts_in_its_family():
    """The family is what the config fixed, not what turned out to be usable."""
    first, last = np.zeros((60, 1, 2)), np.zeros((60, 1, 2))
    first[:12, 0, 0] = last[:40, 0, 0] = 1
    floor = place_gain(*two_points(first, last), "d3_cot", "d3_prompt", "gap")
    sure = place_gain(*simulate(np.random.default_rng(2), 200, 3, 0.0, 0.4), *NAMES)
    both = decide({"floor": floor, "sure": sure})
    assert both["floor"].verdict is Verdict.FLOOR and both["floor"].adjusted_p == 1
    assert both["sure"].adjusted_p == pytest.approx(min(4 * sure.p, 1))


@pytest.mark.parametrize(
    ("part", "verdict"),
    [(-0.3, "ADVANTAGE"), (0, "ADVANTAGE"), (0.5, "BOTH"), (1, "PROMPT"), (1.4, "PROMPT")],
)
def test_verdicts_of_large_studies(part, verdict):
    """A share below 0 is the advantage's, and one above 1 the prompt action's."""
    points = simulate(np.random.default_rng(2), 2000, 1, part, 0.4, prompt=0.3)
    assert place_gain(*points, "d3_cot", "d3_prompt", "gap").verdict is Verdict[verdict]


def test_no_gain_and_a_fall_are_not_placed():
    rng = np.random.default_rng(3)
    for gain in (0.0, -0.15):
        placed = place_gain(
            *simulate(rng, 200, 1, 0.5, gain, cot=0.4), "d3_cot", "d3_prompt", "gap"
        )
        assert placed.verdict is Verdict.NO_GAIN


def test_a_metric_on_the_floor_gives_no_verdict():
    """The prompt action wins 0 and 1 of 60: its change says nothing, whatever the interval."""
    first, last = np.zeros((60, 1, 2)), np.zeros((60, 1, 2))
    first[:12, 0, 0] = last[:40, 0, 0] = last[0, 0, 1] = 1
    points = two_points(first, last)
    placed = place_gain(*points, "d3_cot", "d3_prompt", "gap")
    assert (placed.verdict, placed.floor) == (Verdict.FLOOR, ("d3_prompt",))
    assert on_the_floor(*points, "d3_prompt") and not on_the_floor(*points, "d3_cot")
    # At one end only, it is a change like any other.
    last[:20, 0, 1] = 1
    assert place_gain(*two_points(first, last), *NAMES).verdict is not Verdict.FLOOR


def test_what_was_not_measured_is_not_placed():
    first, last = two_points(np.zeros((3, 1, 2)), np.ones((3, 1, 2)))
    del last.cells["d1_prompt"]
    assert place_gain(first, last, *NAMES) is MISSING


def test_planted_truths():
    """A study of 60 games and +30 points: hardly ever a wrong place, unlike comparisons with 0."""
    wrong = {}
    for part, right in PLANTED.items():
        rng, studies = np.random.default_rng(1), 150
        counts = Counter()
        for _ in range(studies):
            first, last = simulate(rng, 60, 1, part, 0.3)
            placed = place_gain(first, last, "d3_cot", "d3_prompt", "gap")
            share, old = placed.share, compared_with_zero(first, last)
            counts["covered"] += share.low is None or share.low <= part <= share.high
            for rule, verdict in (("share", placed.verdict), ("zero", old)):
                stated = verdict in (Verdict.ADVANTAGE, Verdict.BOTH, Verdict.PROMPT)
                counts[rule, "right"] += verdict in right
                counts[rule, "wrong"] += stated and verdict not in right
        print(f"{part:.2f} of the gain in the prompt action: {dict(counts)}")
        assert counts["covered"] / studies > 0.9
        wrong[part] = [counts[rule, "wrong"] / studies for rule in ("share", "zero")]
    assert max(share for share, _ in wrong.values()) < 0.06
    assert wrong[0.5][1] > 0.5 and wrong[1 / 3][1] > 0.15


@pytest.mark.slow
def test_planted_truths_on_expert_states():
    """60 games of 7 states and +30 points: the right place in nine studies of ten."""
    for part, right in PLANTED.items():
        rng = np.random.default_rng(1)
        verdicts = Counter(
            place_gain(*simulate(rng, 60, 7, part, 0.3), *NAMES).verdict for _ in range(60)
        )
        print(f"{part:.2f} of the gain in the prompt action: {dict(verdicts)}")
        assert sum(verdicts[each] for each in right) >= 0.8 * 60
