"""Advantages by hand, their properties, and the plays that are refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotjax.errors import DataError, UsageError
from cotjax.rl.advantages import (
    EPSILON,
    Played,
    Visited,
    gigpo,
    group_advantages,
    step_advantages,
)

REWARDS = st.lists(
    st.lists(st.floats(-10, 10).map(lambda r: round(r, 3)), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


def plays_of(groups):
    return [
        Played(f"g{group}#{number}", group, reward)
        for group, rewards in enumerate(groups)
        for number, reward in enumerate(rewards)
    ]


def by_name(plays, kind="grpo", **rest):
    values = group_advantages(plays, kind, **rest).values
    return dict(zip((play.name for play in plays), values.tolist(), strict=True))


def test_a_group_by_hand_in_every_kind():
    plays = plays_of([[1.0, 0.0, 0.0, 0.0]])
    deviation = np.std([1, 0, 0, 0], ddof=1)
    np.testing.assert_allclose(
        group_advantages(plays).values, np.array([0.75, -0.25, -0.25, -0.25]) / (deviation + 1e-6)
    )
    np.testing.assert_allclose(group_advantages(plays, "dr_grpo").values, [0.75] + [-0.25] * 3)
    np.testing.assert_allclose(group_advantages(plays, "rloo").values, [1.0] + [-1 / 3] * 3)


@given(REWARDS)
def test_within_a_group_advantages_sum_to_0_and_a_flat_group_has_none(groups):
    plays = plays_of(groups)
    for kind in ("grpo", "dr_grpo", "rloo"):
        made, start = group_advantages(plays, kind), 0
        for rewards in groups:
            own = made.values[start : start + len(rewards)]
            start += len(rewards)
            assert abs(own.sum()) < 1e-8 * max(1, abs(own).max(initial=0))
            if max(rewards) - min(rewards) <= 1e-9:
                assert not own.any()
            else:
                assert own.any(), "one play that differs is a signal for all of its group"
        flat = sum(len(set(rewards)) == 1 < len(rewards) for rewards in groups)
        alone = sum(len(rewards) == 1 for rewards in groups)
        assert (made.counts.groups, made.counts.flat, made.counts.singletons) == (
            len(groups),
            flat,
            alone,
        )


@given(st.lists(st.integers(0, 9), min_size=2, max_size=8), st.floats(0.5, 100), st.floats(-5, 5))
def test_scale_and_offset_do_not_matter_with_the_deviation_and_rloo_is_scaled_dr_grpo(
    rewards, scale, offset
):
    plays, moved = plays_of([rewards]), plays_of([[scale * r + offset for r in rewards]])
    # EPSILON is all that tells the scales apart.
    np.testing.assert_allclose(
        group_advantages(plays).values, group_advantages(moved).values, rtol=20 * EPSILON, atol=1e-6
    )
    count = len(rewards)
    np.testing.assert_allclose(
        group_advantages(plays, "rloo").values,
        count / (count - 1) * group_advantages(plays, "dr_grpo").values,
        atol=1e-9,
    )


@given(REWARDS, st.randoms())
def test_groups_do_not_touch_each_other_and_order_changes_no_bit(groups, random):
    plays = plays_of(groups)
    shuffled = random.sample(plays, len(plays))
    together = by_name(plays)
    assert by_name(shuffled) == together
    alone = {}
    for group in range(len(groups)):
        alone |= by_name([play for play in plays if play.group == group])
    assert alone == together


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_by_the_name_of_its_play(wrong):
    with pytest.raises(DataError, match=r"^g0#1: the reward is"):
        group_advantages(plays_of([[1.0, wrong]]))
    with pytest.raises(DataError, match=r"^kitchen#3: the reward is"):
        gigpo([Visited("kitchen#3", "kitchen", (0.0, wrong), ("a", "b"))])


def test_wrong_group_ids_duplicates_and_unknown_kinds_are_refused():
    plays = plays_of([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(DataError, match=r"the group 0 has 1 plays \(g0#0, …\), it must have 2"):
        group_advantages([*plays[:1], Played("g0#1", 1, 0.0), *plays[2:]], size=2)
    with pytest.raises(DataError, match="g0#0: the play occurs twice"):
        group_advantages([*plays, plays[0]])
    with pytest.raises(UsageError, match="unknown kind of advantage 'ppo'; there are grpo"):
        group_advantages(plays, "ppo")
    with pytest.raises(DataError, match="a: 1 rewards, but 2 anchors"):
        gigpo([Visited("a", 0, (1.0,), ("x", "y"))])


def test_where_all_are_lost_a_malformed_step_loses_its_penalty_and_no_more():
    plays = [Played(str(n), "g", 0.0, (0.1 * (n == 0), *[0.0] * 11)) for n in range(8)]
    values, counts = step_advantages(plays)
    assert counts.flat == 0, "its penalty still counts"
    assert values[0][0] == pytest.approx(-0.1, abs=2e-3)
    assert 0 < values[0][1] == values[7][0] < 2e-3
    # One win, and the deviation is that of wins again.
    plays[1] = Played("1", "g", 1.0, (0.0,) * 12)
    assert step_advantages(plays)[0][1][0] > 2


def test_a_penalty_falls_on_the_malformed_step_and_statistics_are_over_plays():
    plays = [Played("a", 0, 1.0, (0.0, 0.1, 0.0, 0.0)), Played("b", 0, 0.0, (0.0,) * 20)]
    totals = [1.0 - 0.1 / 4, 0.0]
    mean, deviation = np.mean(totals), np.std(totals, ddof=1) + 1e-6
    (first, second), counts = step_advantages(plays)
    np.testing.assert_allclose(first, (np.array([1, 0.9, 1, 1]) - mean) / deviation)
    np.testing.assert_allclose(second, np.full(20, (0 - mean) / deviation))
    assert counts.flat == 0, "the long play counts once"
    equal = [Played("a", 0, 0.0, (0.1, 0.0)), Played("b", 0, 0.0, (0.0, 0.1))]
    values, counts = step_advantages(equal)
    assert not np.concatenate(values).any() and counts.flat == 1


def test_over_steps_a_long_play_weighs_as_often_as_it_acted_as_in_verl_agent():
    """Its numbers: torch's mean and std of the rows' scores, with compute_mean_std_cross_steps."""
    plays = [Played("won", 0, 1.0, (0.0, 0.1)), Played("lost", 0, 0.0, (0.0,) * 6)]
    rows = np.array([1.0, 0.9, *[0.0] * 6])
    (won, lost), counts = step_advantages(plays, unit="step")
    expected = (rows - rows.mean()) / (rows.std(ddof=1) + 1e-6)
    np.testing.assert_allclose([*won, *lost], expected, rtol=1e-12)
    assert lost[0] > step_advantages(plays)[0][1][0], "the mean is the lost play's"
    (won, lost), _ = step_advantages(plays, "rloo", unit="step")
    np.testing.assert_allclose([*won, *lost], [1.0, 0.9, *[-0.95] * 6])
    assert counts.flat == 0
    # One malformed step makes a group of equal plays uneven over steps, and so does it over plays.
    equal = [Played("a", 0, 0.0, (0.1, 0.0)), Played("b", 0, 0.0, (0.0, 0.1))]
    assert step_advantages(equal, unit="step")[1].flat == 0
    alone = [Played("a", 0, 0.0, (0.1, 0.0)), Played("never began", 0, 0.0)]
    assert not step_advantages(alone, unit="step")[0][0].any()


def test_plays_of_equal_length_have_one_mean_in_both_units():
    plays = [Played(str(n), 0, reward, (0.0,) * 4) for n, reward in enumerate((1.0, 0.0, 0.3))]
    for kind in ("dr_grpo", "rloo"):
        for one, two in zip(
            step_advantages(plays, kind)[0], step_advantages(plays, kind, unit="step")[0],
            strict=True,
        ):  # fmt: skip
            np.testing.assert_allclose(one, two, atol=1e-15)


def test_a_cost_is_taken_from_the_reward_and_a_flat_group_stays_flat():
    plays = [Played("a", 0, 1.0, (0.0,) * 2, 0.25), Played("b", 0, 0.0, (0.0,), 0.05)]
    without = [Played("a", 0, 0.75, (0.0,) * 2), Played("b", 0, -0.05, (0.0,))]
    for kind in ("grpo", "dr_grpo", "rloo"):
        for one, two in zip(
            step_advantages(plays, kind)[0], step_advantages(without, kind)[0], strict=True
        ):
            np.testing.assert_array_equal(one, two)
    # Costs alone: scaled to the size of a win's they would drown it; as they are, they pull.
    flat = [Played("a", 0, 1.0, (0.0,), 1e-3), Played("b", 0, 1.0, (0.0,), 0.0)]
    values, counts = step_advantages(flat)
    assert counts.flat == 1 and not np.concatenate(values).any()
    np.testing.assert_allclose(np.concatenate(step_advantages(flat, "dr_grpo")[0]), [-5e-4, 5e-4])


def test_costs_of_steps_are_in_the_returns_that_gigpo_compares():
    taken = [
        Visited("a", 0, (0.0, 1.0), ("s", "t"), (0.5, 0.25)),
        Visited("b", 0, (0.0, 0.0), ("s", "t"), (0.0, 0.0)),
    ]
    net = [Visited("a", 0, (-0.5, 0.75), ("s", "t")), Visited("b", 0, (0.0, 0.0), ("s", "t"))]
    for one, two in zip(gigpo(taken).values, gigpo(net).values, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)
    with pytest.raises(DataError, match="a: 1 rewards, but 2 costs"):
        gigpo([Visited("a", 0, (0.0,), ("s",), (0.5, 0.25))])


def test_without_malformed_steps_the_steps_have_the_plays_advantages():
    plays = [Played(str(n), 0, reward, (0.0,) * 3) for n, reward in enumerate((1.0, 0.0, 0.3))]
    for kind in ("grpo", "dr_grpo", "rloo"):
        steps, _ = step_advantages(plays, kind)
        whole = group_advantages(plays, kind).values
        np.testing.assert_array_equal([own[0] for own in steps], whole)


# ---- GiGPO


def test_gigpo_by_hand():
    """Two plays of a game that meet in state s and part; one comes back to it."""
    first = Visited("first", "game", (0.0, 0.0, 1.0), ("start", "s", "s"))
    second = Visited("second", "game", (0.0, -0.1), ("start", "s"))
    made = gigpo([first, second], "dr_grpo", omega=2.0, gamma=0.5)
    episode = np.array([1.0, -0.1]) - 0.45
    # Discounted returns: first 0.25, 0.5, 1; second -0.05, -0.1.
    start = np.array([0.25, -0.05]) - 0.1
    s = np.array([0.5, 1.0, -0.1]) - 1.4 / 3
    np.testing.assert_allclose(
        made.values[0], episode[0] + 2 * np.array([start[0], s[0], s[1]]), atol=1e-12
    )
    np.testing.assert_allclose(made.values[1], episode[1] + 2 * np.array([start[1], s[2]]))
    assert (made.anchors, made.singletons, made.steps, made.anchor_size) == (2, 0, 5, 2.5)
    scaled = gigpo([first, second], "grpo", gamma=0.5)
    expected = (s[0] - 0) / (np.std([0.5, 1.0, -0.1], ddof=1) + 1e-6)
    deviation = np.std([1.0, -0.1], ddof=1) + 1e-6
    np.testing.assert_allclose(scaled.values[0][1], 0.55 / deviation + expected)


def test_states_of_other_games_and_states_seen_once_are_no_anchors():
    plays = [
        Visited("a", 0, (1.0,), ("nothing happens",)),
        Visited("b", 1, (0.0,), ("nothing happens",)),
        Visited("c", 1, (0.0,), ("elsewhere",)),
    ]
    made = gigpo(plays)
    assert not np.concatenate(made.values).any()
    assert (made.anchors, made.singletons) == (3, 3)


def test_what_tells_states_apart_decides_which_steps_are_compared():
    """One observation in two states: as its own anchor it mixes steps of different worth."""
    told = [
        Visited("a", 0, (0.0, 1.0), (("cellar", "nothing"), ("attic", "nothing"))),
        Visited("b", 0, (0.0, 1.0), (("cellar", "nothing"), ("attic", "nothing"))),
    ]
    mixed = [Visited(p.name, 0, p.rewards, tuple(said for _, said in p.anchors)) for p in told]
    assert not np.concatenate(gigpo(told).values).any(), "both plays did equally well"
    assert np.concatenate(gigpo(mixed, gamma=0.5).values).any()


def test_without_weight_on_steps_gigpo_is_grpo():
    rewards = [(0.0, 1.0), (0.2,), (0.0, 0.0, 0.5)]
    plays = [Visited(str(n), 0, own, tuple("xyz"[: len(own)])) for n, own in enumerate(rewards)]
    whole = group_advantages([Played(str(n), 0, sum(own)) for n, own in enumerate(rewards)])
    made = gigpo(plays, omega=0.0)
    for own, advantage in zip(made.values, whole.values, strict=True):
        assert (own == advantage).all()
