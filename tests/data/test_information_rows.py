"""The sample that information is measured on, and its responses without their thoughts."""

import numpy as np
import pytest
from helpers import tiny

from cotjax.data.information import (
    DROPPED,
    REASONED,
    RemovedTokens,
    packed,
    packed_without_thoughts,
    sample,
    without_thoughts,
)
from cotjax.data.tokens import Layout, trajectory_examples
from cotjax.masking import Dropping, Role

R, A = Role.REASONING, Role.ACTION


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def stored(codec, form="cot", layout="trajectory", steps=3, name="t0", **rest):
    """Return the examples of an episode as a dataset stores them."""
    found = trajectory_examples(
        codec, tiny.trajectory(name=name, steps=steps), form, 512, Layout(layout, **rest)
    )
    return [vars(one) | {"id": one.id.encode()} for one in found]


def test_the_drawn_example():
    example = {
        "ids": np.arange(8, dtype=np.int32),
        "roles": np.array([1, R, R, R, Role.ACTION_OPEN, A, Role.END, 1], np.int8),
        "branches": np.array([0, 1, 1, 1, 1, 1, 1, 0], np.int32),
        "positions": np.array([0, 1, 2, 3, 4, 5, 6, 1], np.int32),
    }
    (bare,) = without_thoughts(example)
    assert bare["ids"].tolist() == [0, 4, 5, 6, 7]
    assert bare["positions"].tolist() == [0, 1, 2, 3, 1]
    assert bare["roles"].tolist() == [1, Role.ACTION_OPEN, A, Role.END, 1]


def test_without_its_thought_a_response_is_its_direct_form(codec):
    for cot, direct in zip(
        stored(codec, layout="step"), stored(codec, "direct", "step"), strict=True
    ):
        (bare,) = without_thoughts(cot)
        for name in ("ids", "roles", "branches", "positions"):
            np.testing.assert_array_equal(bare[name], direct[name])
        assert without_thoughts(direct)[0].keys() == direct.keys()


def test_a_branch_leaves_its_trunk_where_it_left_it(codec):
    """Each branch with the trunk before it is the step's own prompt and direct response."""
    (tree,), steps = stored(codec), stored(codec, "direct", "step")
    (bare,) = without_thoughts(tree)
    assert not (bare["roles"] == R).any() and (bare["branches"] == 3).any()
    for branch, alone in enumerate(steps, 1):
        end = int(np.flatnonzero(bare["branches"] == branch)[-1]) + 1
        kept = np.isin(bare["branches"][:end], (0, branch))
        np.testing.assert_array_equal(bare["ids"][:end][kept], alone["ids"])
        np.testing.assert_array_equal(bare["positions"][:end][kept], alone["positions"])


def test_on_a_trunk_the_thoughts_of_earlier_responses_stay(codec):
    (line,) = stored(codec, past_thoughts=True)
    bare = without_thoughts(line)
    thoughts = [np.flatnonzero(line["roles"] == R)]
    assert len(bare) == 3
    lengths = [int((one["roles"] == A).sum()) for one in bare]
    assert lengths == [3, 3, 3], "each has the action of one response"
    for one in bare:
        assert not (one["roles"] == R).any()
        np.testing.assert_array_equal(one["positions"], np.arange(len(one["ids"])))
    # The second response's prompt holds the first one's thought, its own is gone.
    assert len(bare[1]["ids"]) < int(thoughts[0].max()) + 1
    assert set(line["ids"][line["roles"] == R]) & set(bare[1]["ids"])


def test_the_sample_is_the_same_wherever_its_examples_stand(codec):
    examples = [stored(codec, name=f"t{i}")[0] for i in range(20)]
    names = [one["id"] for one in sample(examples, 8, Dropping.of())]
    assert len(set(names)) == 8
    assert [one["id"] for one in sample(examples[::-1], 8, Dropping.of())] == names
    assert [one["id"] for one in sample(examples, 5, Dropping.of(fraction=0.5, seed=3))] == names[
        :5
    ]
    assert len(sample(examples, 64, Dropping.of())) == 20


def test_a_held_out_example_without_what_a_control_drops_is_passed_over(codec):
    examples = [stored(codec, name="t0")[0], stored(codec, "direct", name="t1")[0]]
    dropping = Dropping.of(fraction=1.0, control="reasoning tokens")
    assert [one["id"] for one in sample(examples, 8, dropping)] == [b"t0"]


def test_groups_tell_role_thought_and_dropping(codec):
    mixed = [*stored(codec, name="t0"), *stored(codec, "direct", name="t1")]
    dropping = Dropping.of(fraction=0.5, unit="example")
    rows = packed(mixed, dropping, 512)
    at = {}
    for fraction in (0.0, 1.0):
        ((batch, groups),) = rows.batches(2, (0, 1), fraction)
        assert batch["ids"].shape == (2, 512) and not batch["dropped"].any()
        at[fraction] = np.bincount(groups["groups"][batch["weights"] > 0], minlength=4 * len(Role))
    assert at[0.0][A] == at[0.0][A + REASONED] == 9 and not at[0.0][DROPPED:].any()
    assert at[1.0][A + DROPPED] == at[1.0][A + REASONED + DROPPED] == 9
    assert not at[1.0][[A, A + REASONED]].any()
    assert at[1.0][R + REASONED] == at[0.0][R + REASONED] > 0 == at[1.0][R]
    bare = packed_without_thoughts(mixed, dropping, 512)
    assert bare.examples == 2 and bare.fields["weights"].sum() == 18


def test_tokens_that_arms_drop_are_counted_without_a_model(codec):
    examples = list(trajectory_examples(codec, tiny.trajectory(steps=3), "cot", 512))
    droppings = {
        "sft": Dropping.of(),
        "all": Dropping.of(fraction=1.0),
        "later": Dropping.of(last_fraction=1.0, fraction_steps=4),
    }
    removed = RemovedTokens(droppings)
    for example in examples:
        removed.add(example)
    (example,) = examples
    responses = int((example.roles > Role.OBSERVATION).sum())
    share = 100 * 9 / responses
    assert [line.split(";")[0] for line in removed.lines()] == [
        f"arm {arm!r} drops {share:.3g} % of the {responses:,} supervised tokens"
        for arm in ("all", "later")
    ]
