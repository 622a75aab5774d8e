import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.masking import (
    CONTROLS,
    RESPONSE_ROLES,
    Dropping,
    LinearFraction,
    MaskError,
    Role,
    drops_action,
    target_weights,
    turn_numbers,
)

P, OBS, R, AO, A, AC, E, ANSWER = (
    Role.PROMPT,
    Role.OBSERVATION,
    Role.REASONING,
    Role.ACTION_OPEN,
    Role.ACTION,
    Role.ACTION_CLOSE,
    Role.END,
    Role.ANSWER,
)
KINDS = {"query": A, "answer": ANSWER}


@st.composite
def conversations(draw):
    """Roles of 1 to 4 turns, each with at least as many reasoning as action tokens.

    A turn's action is an action, as all are but in growing texts, or an answer.
    """
    roles = []
    for turn in range(draw(st.integers(1, 4))):
        action, kind = draw(st.integers(1, 5)), draw(st.sampled_from([A, A, ANSWER]))
        roles += [OBS if turn else P] * draw(st.integers(1, 6)) + [P]
        roles += [R] * (action + draw(st.integers(0, 9))) + [AO] + [kind] * action + [AC, E]
    return np.array(roles, np.int8)


def test_dropping_is_a_pure_function_with_nested_subsets():
    ids = [f"example {i}" for i in range(4000)]
    chosen = {k: {name for name in ids if drops_action(7, name, k)} for k in (0.0, 0.1, 0.3, 1.0)}
    assert chosen[0.0] == set() and chosen[1.0] == set(ids)
    assert chosen[0.1] < chosen[0.3]
    for k in (0.1, 0.3):
        five_sigma = 5 * np.sqrt(k * (1 - k) * len(ids))
        assert abs(len(chosen[k]) - k * len(ids)) < five_sigma
    assert chosen[0.3] == {name for name in reversed(ids) if drops_action(7, name, 0.3)}
    assert chosen[0.3] != {name for name in ids if drops_action(8, name, 0.3)}
    assert chosen[0.3] != {name for name in ids if drops_action(7, name, 0.3, epoch=1)}


def test_the_dropped_subset_is_pinned():
    # Changing the hash would silently change every published run.
    assert [i for i in range(20) if drops_action(0, f"trajectory#{i}", 0.3)] == PINNED


PINNED = [9, 15, 17]


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        drops_action(0, "x", fraction)


@given(conversations())
def test_turns_are_counted_off_the_roles(roles):
    turns = turn_numbers(roles)
    assert turns.shape == roles.shape and turns[0] == 0
    opens = np.flatnonzero(roles == AO)
    np.testing.assert_array_equal(turns[opens], np.arange(len(opens)))
    for turn in range(len(opens)):
        assert (roles[turns == turn] == AO).sum() == 1
        assert roles[turns == turn][-1] == E, "a turn is its prompt and then its response"


@settings(max_examples=60, deadline=None)
@given(
    conversations(),
    st.sampled_from(["example", "turn", "token"]),
    st.sampled_from(CONTROLS),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
)
def test_a_control_drops_exactly_as_many_tokens_of_the_same_units_and_nothing_unsupervised(
    roles, unit, control, fraction, close, end
):
    if unit == "token" and control in ("reasoning", "examples"):
        return
    options = {"fraction": fraction, "seed": 3, "unit": unit, "action_close": close, "end": end}
    if control == "reasoning tokens" and (close or end):
        roles = np.repeat(roles, np.where(roles == R, 3, 1))  # enough of it
    real, other = (
        Dropping(**options, control=which).tokens(roles, "x") for which in ("action", control)
    )
    assert not other[~np.isin(roles, RESPONSE_ROLES)].any()
    turns = turn_numbers(roles)
    if control in KINDS:
        # Of the action's tokens, those of the turns that have this kind of action.
        has_kind = np.isin(turns, turns[roles == KINDS[control]])
        np.testing.assert_array_equal(other, real & has_kind)
    elif unit != "token":
        touched = [set(turns[mask]) for mask in (real, other)]
        assert (
            touched[1] == touched[0]
            if control in ("reasoning", "examples") or unit == "turn"
            else touched[1] <= set(turns)
        )
    if control in ("random tokens", "reasoning tokens") and unit != "token":
        full = target_weights(roles).sum()
        assert (
            target_weights(roles, drop_tokens=other).sum()
            == target_weights(roles, drop_tokens=real).sum()
            == full - real.sum()
        )
        if unit == "turn":
            for turn in touched[0]:
                assert other[turns == turn].sum() == real[turns == turn].sum()
    if control in ("reasoning", "reasoning tokens"):
        assert set(roles[other]) <= {R}
    if control == "action":
        assert set(roles[other]) <= {A, ANSWER, *([AC] if close else []), *([E] if end else [])}


def test_turns_are_drawn_one_by_one():
    roles, drop = np.tile([P, R, AO, A, AC, E], 3), Dropping(0.5, seed=2, unit="turn")
    turns = turn_numbers(roles)
    drawn = [
        [drop.tokens(roles, f"{i}")[turns == turn].any() for turn in range(3)] for i in range(20)
    ]
    assert drawn == [[drops_action(2, f"{i}#{turn}", 0.5) for turn in range(3)] for i in range(20)]
    assert any(0 < sum(one) < 3 for one in drawn)


def test_random_tokens_are_drawn_from_the_whole_response_and_evenly():
    roles = np.array([P, R, R, R, AO, A, A, AC, E], np.int8)
    drop = Dropping(fraction=1.0, control="random tokens")
    counts = sum(drop.tokens(roles, f"example {i}").astype(int) for i in range(4000))
    assert counts[0] == 0
    expected = 4000 * 2 / 8
    assert (abs(counts[1:] - expected) < 5 * np.sqrt(4000 * 0.25 * 0.75)).all()


def test_token_by_token_the_dropped_share_is_the_fraction():
    roles = np.array([P, R] + [A] * 4000 + [E], np.int8)
    drop = Dropping(fraction=0.3, unit="token").tokens(roles, "x")
    assert abs(drop.sum() - 1200) < 5 * np.sqrt(4000 * 0.21)


def test_a_schedule_moves_the_fraction_and_the_subsets_stay_nested():
    schedule = LinearFraction(0.1, 0.5, 100)
    assert [schedule(step) for step in (0, 50, 100, 1000)] == [0.1, pytest.approx(0.3), 0.5, 0.5]
    roles = np.array([P, R, AO, A, AC, E], np.int8)
    drop = Dropping(fraction=schedule)
    chosen = [
        {i for i in range(2000) if drop.tokens(roles, f"{i}", step=step).any()}
        for step in (0, 50, 100)
    ]
    assert chosen[0] < chosen[1] < chosen[2]
    assert chosen[1] == {i for i in range(2000) if drops_action(0, f"{i}", 0.3)}


def test_a_schedule_starts_at_step_0_and_one_that_leaves_0_to_1_is_refused():
    assert LinearFraction(0.1, 0.5, 100)(-50) == 0.1
    roles = np.array([P, R, AO, A, AC, E], np.int8)
    for wrong in (30.0, -0.1, float("nan"), None):
        with pytest.raises(MaskError, match=r"0\.\.1"):
            Dropping(lambda step, wrong=wrong: wrong).tokens(roles, "x")


@pytest.mark.parametrize("control", ["action", "random tokens", "reasoning tokens"])
@pytest.mark.parametrize("unit", ["example", "turn", "token"])
def test_every_draw_depends_on_the_seed_and_where_asked_on_the_epoch(unit, control):
    roles = np.array([P, *[R] * 30, AO, *[A] * 20, AC, E], np.int8)

    def drawn(seed, epoch=0, redraw=False):
        dropping = Dropping(0.5, seed, unit, redraw, control)
        return np.concatenate([dropping.tokens(roles, f"{i}", epoch=epoch) for i in range(30)])

    assert (drawn(1) != drawn(2)).any()
    np.testing.assert_array_equal(drawn(1, epoch=0), drawn(1, epoch=1))
    assert (drawn(1, 0, redraw=True) != drawn(1, 1, redraw=True)).any()


@pytest.mark.parametrize(
    ("control", "unit"),
    [("random tokens", "example"), ("random tokens", "token"), ("reasoning tokens", "token")],
)
def test_which_tokens_a_control_takes_depends_on_the_seed_and_the_epoch_by_itself(control, unit):
    """At fraction 1 every unit is drawn, so what differs is the choice of tokens within it."""
    roles = np.array([P, *[R] * 30, AO, *[A] * 20, AC, E], np.int8)

    def chosen(seed, epoch):
        return Dropping(1.0, seed, unit, True, control).tokens(roles, "x", epoch=epoch)

    assert (chosen(1, 0) != chosen(2, 0)).any() and (chosen(1, 0) != chosen(1, 1)).any()


@pytest.mark.parametrize("control", ["random tokens", "examples"])
def test_a_control_takes_only_from_what_is_trained_on(control):
    roles = np.array([P, *[R] * 8, AO, A, A, AC, E], np.int8)
    drop = Dropping(1.0, control=control, supervised=(R, A)).tokens(roles, "x")
    assert set(roles[drop]) <= {R, A} and drop.any()
    assert drop.sum() == (10 if control == "examples" else 2)


@pytest.mark.parametrize("control", CONTROLS)
def test_padding_on_the_left_changes_no_draw_and_the_first_token_is_never_drawn(control):
    roles = np.array([R, R, R, R, AO, A, A, AC, E], np.int8)
    dropping = Dropping(1.0, control=control)
    whole = dropping.draws(roles, "x")
    padded = dropping.draws(np.concatenate([[Role.PAD] * 3, roles]), "x")
    np.testing.assert_array_equal(padded[3:], whole)
    assert whole[0] == padded[:4].min() == 2.0


def test_a_unit_that_is_never_drawn_may_lack_the_reasoning_to_drop_instead():
    roles = np.array([P, R, AO, A, A, A, AC, E], np.int8)
    for unit in ("example", "turn", "token"):
        for fraction in (0.0, 1e-9, LinearFraction(0.0, 1e-9, 10)):
            assert (
                not Dropping(fraction, unit=unit, control="reasoning tokens")
                .tokens(roles, "x", step=10)
                .any()
            )
        with pytest.raises(MaskError, match="3 action tokens"):
            Dropping(LinearFraction(0.0, 1.0, 10), unit=unit, control="reasoning tokens").tokens(
                roles, "x", step=0
            )


@pytest.mark.parametrize(
    ("roles", "more", "named"),
    [
        ([P, 300], {}, r"0\.\.8"),
        ([[P, A]], {}, "one axis"),
        ([P, 1.5], {}, "integers"),
        ([P, "A"], {}, "integers"),
        ([P, [A]], {}, "integers"),
        ([P, 10**30], {}, "integers"),
        (3, {}, "an axis of tokens"),
        ([P, A, E], {"turns": [0, 0]}, r"turns have shape \(2,\)"),
    ],
)
def test_roles_and_turns_that_cannot_be_are_named(roles, more, named):
    with pytest.raises(MaskError, match=f"'episode 9'.*{named}"):
        Dropping(1.0).tokens(roles, "episode 9", **more)


def test_an_example_without_tokens_drops_none():
    assert Dropping(1.0).tokens([], "x").shape == (0,) and turn_numbers([]).shape == (0,)


def test_redrawing_needs_the_epoch_and_then_changes_with_it():
    roles = np.array([P, R, AO, A, AC, E], np.int8)
    with pytest.raises(MaskError, match="epoch"):
        Dropping(redraw=True).tokens(roles, "x")
    fixed, redrawn = (
        [
            [Dropping(redraw=redraw).tokens(roles, f"{i}", epoch=epoch).any() for i in range(200)]
            for epoch in (0, 1)
        ]
        for redraw in (False, True)
    )
    assert fixed[0] == fixed[1] and redrawn[0] != redrawn[1]


def test_another_process_draws_the_same():
    code = (
        "from cotjax.masking import *; "
        "print([i for i in range(300) if drops_action(4, str(i), 0.3, epoch=2)])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "77"},
    ).stdout
    assert out.strip() == str([i for i in range(300) if drops_action(4, str(i), 0.3, epoch=2)])


def test_too_little_reasoning_to_drop_instead_is_named():
    with pytest.raises(MaskError, match=r"'episode 9'.*3 action tokens.*only 1"):
        Dropping(fraction=1.0, control="reasoning tokens").tokens(
            np.array([P, R, AO, A, A, A, AC, E]), "episode 9"
        )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"unit": "word"}, "word"),
        ({"control": "all"}, "all"),
        ({"fraction": 1.2}, r"0\.\.1"),
        ({"unit": "token", "control": "examples"}, "whole examples or turns"),
    ],
    ids=["unit", "control", "fraction", "token"],
)
def test_wrong_settings_are_refused(wrong, named):
    with pytest.raises(MaskError, match=named):
        Dropping(**wrong)
    with pytest.raises(MaskError, match="step"):
        LinearFraction(0.0, 0.3, 0)
