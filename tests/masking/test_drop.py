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

P, OBS, R, AO, A, AC, E = Role.PROMPT, Role.OBSERVATION, Role.REASONING, Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END


@st.composite
def conversations(draw):
    """Roles of a conversation of 1 to 4 turns; every response reasons at least as long as it acts."""
    roles = []
    for turn in range(draw(st.integers(1, 4))):
        action = draw(st.integers(1, 5))
        roles += [OBS if turn else P] * draw(st.integers(1, 6)) + [P]
        roles += [R] * (action + draw(st.integers(0, 9))) + [AO] + [A] * action + [AC, E]
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
    conversations(), st.sampled_from(["example", "turn", "token"]), st.sampled_from(CONTROLS), st.floats(0, 1), st.booleans(), st.booleans()
)
def test_a_control_drops_exactly_as_many_tokens_of_the_same_units_and_nothing_unsupervised(roles, unit, control, fraction, close, end):
    if unit == "token" and control in ("reasoning", "examples"):
        return
    options = {"fraction": fraction, "seed": 3, "unit": unit, "action_close": close, "end": end}
    if control == "reasoning tokens" and (close or end):
        roles = np.repeat(roles, np.where(roles == R, 3, 1))  # enough of it
    real, other = (Dropping(**options, control=which).tokens(roles, "x") for which in ("action", control))
    assert not other[~np.isin(roles, RESPONSE_ROLES)].any()
    turns = turn_numbers(roles)
    if unit != "token":
        touched = [set(turns[mask]) for mask in (real, other)]
        assert touched[1] == touched[0] if control in ("reasoning", "examples") or unit == "turn" else touched[1] <= set(turns)
    if control in ("random tokens", "reasoning tokens") and unit != "token":
        full = target_weights(roles).sum()
        assert target_weights(roles, drop_tokens=other).sum() == target_weights(roles, drop_tokens=real).sum() == full - real.sum()
        if unit == "turn":
            for turn in touched[0]:
                assert other[turns == turn].sum() == real[turns == turn].sum()
    if control in ("reasoning", "reasoning tokens"):
        assert set(roles[other]) <= {R}
    if control == "action":
        assert set(roles[other]) <= {A, *([AC] if close else []), *([E] if end else [])}


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
    chosen = [{i for i in range(2000) if drop.tokens(roles, f"{i}", step=step).any()} for step in (0, 50, 100)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert chosen[1] == {i for i in range(2000) if drops_action(0, f"{i}", 0.3)}


def test_redrawing_needs_the_epoch_and_then_changes_with_it():
    roles = np.array([P, R, AO, A, AC, E], np.int8)
    with pytest.raises(MaskError, match="epoch"):
        Dropping(redraw=True).tokens(roles, "x")
    fixed, redrawn = (
        [[Dropping(redraw=redraw).tokens(roles, f"{i}", epoch=epoch).any() for i in range(200)] for epoch in (0, 1)]
        for redraw in (False, True)
    )
    assert fixed[0] == fixed[1] and redrawn[0] != redrawn[1]


def test_another_process_draws_the_same():
    code = "from cotjax.masking import *; import numpy as np; print([int(i) for i in range(300) if drops_action(4, str(i), 0.3, epoch=2)])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "77"}).stdout
    assert out.strip() == str([i for i in range(300) if drops_action(4, str(i), 0.3, epoch=2)])


def test_too_little_reasoning_to_drop_instead_is_named():
    with pytest.raises(MaskError, match=r"'episode 9'.*3 action tokens.*only 1"):
        Dropping(fraction=1.0, control="reasoning tokens").tokens(np.array([P, R, AO, A, A, A, AC, E]), "episode 9")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"unit": "word"}, "word"),
        ({"control": "all"}, "all"),
        ({"fraction": 1.2}, r"0\.\.1"),
        ({"unit": "token", "control": "examples"}, "whole units"),
    ],
    ids=["unit", "control", "fraction", "token"],
)
def test_wrong_settings_are_refused(wrong, named):
    with pytest.raises(MaskError, match=named):
        Dropping(**wrong)
    with pytest.raises(MaskError, match="step"):
        LinearFraction(0.0, 0.3, 0)
