import numpy as np
import pytest

from cotjax.masking import (
    RESPONSE_ROLES,
    Dropping,
    MaskError,
    Role,
    check_supervision,
    labels,
    spread,
    target_weights,
    targets,
)

P, OBS, R, AO, A, AC, E = (
    Role.PROMPT,
    Role.OBSERVATION,
    Role.REASONING,
    Role.ACTION_OPEN,
    Role.ACTION,
    Role.ACTION_CLOSE,
    Role.END,
)
EXAMPLE = np.array([P, R, R, R, AO, A, AC, E])


def test_the_worked_example_of_the_docstring():
    np.testing.assert_array_equal(target_weights(EXAMPLE), [1, 1, 1, 1, 1, 1, 1, 0])
    dropped = target_weights(EXAMPLE, drop_action=np.ones(8, bool))
    np.testing.assert_array_equal(dropped, [1, 1, 1, 1, 0, 1, 1, 0])
    assert dropped.dtype == np.float32


def test_targets_are_the_next_ids():
    np.testing.assert_array_equal(targets(np.array([[5, 6, 7], [1, 2, 3]])), [[6, 7, 7], [2, 3, 3]])


def test_whole_rows_drop_by_one_value_each():
    roles = np.stack([EXAMPLE, EXAMPLE])
    weights = target_weights(roles, drop_action=np.array([True, False]))
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0]])


def test_the_tag_and_the_end_go_with_the_action_only_when_asked():
    drop = np.ones(8, bool)
    with_end = target_weights(EXAMPLE, drop_action=drop, dropped=(A, AC, E))
    np.testing.assert_array_equal(with_end, [1, 1, 1, 1, 0, 0, 0, 0])


def test_observations_are_trained_on_when_asked():
    roles = np.array([P, R, AO, A, AC, E, P, OBS, OBS])
    np.testing.assert_array_equal(
        target_weights(roles, supervised=(*RESPONSE_ROLES, OBS)), [1, 1, 1, 1, 1, 0, 1, 1, 0]
    )


def test_prompt_observation_and_padding_are_never_trained_on_by_default():
    roles = np.array([P, OBS, P, R, AO, A, AC, E, Role.PAD, Role.PAD])
    weights = target_weights(roles)
    supervised = {
        Role(role) for role, weight in zip(targets(roles), weights, strict=True) if weight
    }
    assert supervised == {*RESPONSE_ROLES} - {Role.ANSWER}
    np.testing.assert_array_equal(weights, [0, 0, 1, 1, 1, 1, 1, 0, 0, 0])


def test_no_weight_crosses_a_segment_or_follows_a_branch_into_the_trunk():
    roles = np.array([P, R, A, P, A, R])
    segments = np.array([1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(target_weights(roles, segment_ids=segments), [1, 1, 0, 1, 1, 0])
    branches = np.array([0, 1, 1, 0, 0, 2])
    # The trunk's action at index 4 follows the trunk. At index 3 the trunk resumes after a branch,
    # which it does not continue.
    roles = np.array([P, R, A, A, A, R])
    np.testing.assert_array_equal(target_weights(roles, branches=branches), [1, 1, 0, 1, 1, 0])


def test_labels_stand_at_the_token_itself_and_say_what_weights_say():
    ids = np.arange(10, 18)
    weights = target_weights(EXAMPLE, drop_action=np.ones(8, bool))
    np.testing.assert_array_equal(labels(ids, weights), [-100, 11, 12, 13, 14, -100, 16, 17])
    with pytest.raises(MaskError, match="0 or 1"):
        labels(ids, weights / 2)


def test_a_value_an_example_is_spread_over_its_tokens():
    segments = np.array([[1, 1, 2, 0], [1, 2, 2, 2]])
    np.testing.assert_array_equal(
        spread(np.array([[5, 6], [7, 8]]), segments, fill=-1), [[5, 5, 6, -1], [7, 8, 8, 8]]
    )


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ([P, P, P], "no token is supervised"),
        ([R, R, R, Role.PAD], "every token is supervised"),
        ([Role.PAD, R, R, R], "every token is supervised"),
        ([Role.PAD, Role.PAD], "no token"),
        ([], "no token"),
    ],
    ids=["all zero", "all one", "all one behind padding", "padding", "empty"],
)
def test_a_mask_of_zeros_alone_or_ones_alone_is_refused(roles, problem):
    roles = np.array(roles, int)
    with pytest.raises(MaskError, match=f"file.jsonl: .*{problem}"):
        check_supervision(target_weights(roles), roles, "file.jsonl")


def test_a_prompt_of_one_token_is_no_mask_of_ones():
    check_supervision(target_weights([P, R, A, E]), [P, R, A, E])


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        ([[P, R, A, E, P, P, P]], "row 0, segment 2: no token is supervised"),
        ([[P, R, A, E, R, R, R]], "row 0, segment 2: every token is supervised"),
        ([[R, R, R, R, R, R, R]], "row 0, segment 1: every token is supervised"),
    ],
    ids=["one trains nothing", "one trains everything", "all train everything"],
)
def test_every_example_of_a_packed_row_is_checked_by_itself(packed, problem):
    roles, segments = np.array(packed), np.array([[1, 1, 1, 1, 2, 2, 2]])
    with pytest.raises(MaskError, match=problem):
        check_supervision(target_weights(roles, segment_ids=segments), roles, segment_ids=segments)


def test_every_row_of_a_batch_is_checked_and_one_of_padding_alone_is_none():
    roles = np.array([[P, R, A, E], [P, P, P, P], [Role.PAD] * 4])
    with pytest.raises(MaskError, match="row 1: no token is supervised"):
        check_supervision(target_weights(roles), roles)
    check_supervision(target_weights(roles[[0, 2]]), roles[[0, 2]])


def test_behind_padding_on_the_left_the_first_token_is_no_target():
    """A response without its prompt: its first token follows padding, which predicts nothing."""
    np.testing.assert_array_equal(target_weights([Role.PAD, Role.PAD, R, A, E]), [0, 0, 1, 1, 0])


def test_padding_cannot_be_trained_on():
    for wrong in (Role.PAD, 9):
        with pytest.raises(MaskError, match="cannot be trained on"):
            target_weights(EXAMPLE, supervised=(R, wrong))


@pytest.mark.parametrize("broken", ["drop_action", "drop_tokens", "segment_ids", "branches"])
def test_shapes_that_do_not_go_together_are_refused(broken):
    with pytest.raises(MaskError, match=broken):
        target_weights(EXAMPLE, **{broken: np.zeros(5, int)})


def test_an_answer_is_trained_on_where_actions_are_and_dropped_with_them_or_alone():
    roles = np.array([P, R, AO, A, AC, OBS, R, AO, Role.ANSWER, AC, E])
    query, answer = 2, 7  # the positions whose targets they are
    plain = target_weights(roles)
    assert plain[query] and plain[answer]
    np.testing.assert_array_equal(plain, target_weights(roles, supervised=(R, AO, A, AC, E)))
    assert target_weights(roles, supervised=(Role.ANSWER,)).nonzero()[0].tolist() == [answer]
    dropped = {"action": [query, answer], "query": [query], "answer": [answer]}
    for control, lost in dropped.items():
        drops = Dropping(fraction=1.0, control=control).tokens(roles, "e")
        weights = target_weights(roles, drop_tokens=drops)
        assert (plain > weights).nonzero()[0].tolist() == lost
    both = target_weights(roles, drop_action=np.ones(len(roles), bool))
    assert (plain > both).nonzero()[0].tolist() == dropped["action"]


def test_what_is_no_role_is_refused():
    for wrong in (9, -1):
        with pytest.raises(MaskError, match=r"0\.\.8"):
            target_weights(np.array([1, 3, wrong]))
