import numpy as np
import pytest

from cotjax.masking import RESPONSE_ROLES, Role, drops_action, target_weights, targets

P, OBS, R, AO, A, AC, E = Role.PROMPT, Role.OBSERVATION, Role.REASONING, Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END
EXAMPLE = np.array([P, R, R, R, AO, A, AC, E])


def test_the_worked_example_of_the_docstring():
    np.testing.assert_array_equal(target_weights(EXAMPLE), [1, 1, 1, 1, 1, 1, 1, 0])
    dropped = target_weights(EXAMPLE, drop_action=np.ones(8, bool))
    np.testing.assert_array_equal(dropped, [1, 1, 1, 1, 0, 1, 1, 0])
    assert dropped.dtype == np.float32


def test_targets_are_the_next_ids():
    np.testing.assert_array_equal(targets(np.array([[5, 6, 7], [1, 2, 3]])), [[6, 7, 7], [2, 3, 3]])


def test_prompt_observation_and_padding_are_never_trained_on_by_default():
    roles = np.array([P, OBS, P, R, AO, A, AC, E, Role.PAD, Role.PAD])
    weights = target_weights(roles)
    supervised = {Role(role) for role, weight in zip(targets(roles), weights, strict=True) if weight}
    assert supervised == set(RESPONSE_ROLES)
    np.testing.assert_array_equal(weights, [0, 0, 1, 1, 1, 1, 1, 0, 0, 0])


def test_no_weight_crosses_a_segment_or_follows_a_branch_into_the_trunk():
    roles = np.array([P, R, A, P, A, R])
    segments = np.array([1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(target_weights(roles, segment_ids=segments), [1, 1, 0, 1, 1, 0])
    branches = np.array([0, 1, 1, 0, 0, 2])
    # The trunk's action at index 4 follows the trunk; at index 3 the trunk goes on behind a branch, which it does not continue.
    roles = np.array([P, R, A, A, A, R])
    np.testing.assert_array_equal(target_weights(roles, branches=branches), [1, 1, 0, 1, 1, 0])


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
