"""Pairs: what their sides see and share, where rejected responses come from, and the store."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from cotjax.data.pair_store import PairSource, write_pairs
from cotjax.data.pairs import (
    OtherStates,
    PairCounts,
    SameState,
    lost_trees,
    step_pairs,
    trajectory_pairs,
)
from cotjax.data.pipeline import dropped_weights, packed_row
from cotjax.data.tokens import Layout, trajectory_examples
from cotjax.errors import DataError
from cotjax.masking import Dropping, Role


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def episode(name="t0", steps=3, **changes):
    """An episode in whose every state every cabinet can be opened."""
    made = tiny.trajectory(name, steps)
    anywhere = tuple(f"open cabinet {number + 1}" for number in range(9))
    played = tuple(replace(step, admissible_commands=anywhere) for step in made.steps)
    return replace(made, steps=played, **changes)


def pairs_of(codec, *episodes, answers=None, max_length=200, **rest):
    counts = PairCounts()
    made = list(
        step_pairs(codec, episodes, answers or OtherStates(codec), max_length, counts, **rest)
    )
    return made, counts


def line(codec, pair, branch):
    """The ids that a branch of a pair and its trunk are without the other branches."""
    return pair.ids[(pair.branches == 0) | (pair.branches == branch)].tolist()


def test_each_side_is_the_example_that_training_would_make_of_it(codec):
    made, counts = pairs_of(codec, episode())
    steps = list(trajectory_examples(codec, episode(), "cot", 200, Layout("step")))
    assert counts.pairs == len(made) == len(steps) == 3
    for pair, example in zip(made, steps, strict=True):
        assert line(codec, pair, 1) == example.ids.tolist()
        for branch in (1, 2):
            own = (pair.branches == 0) | (pair.branches == branch)
            assert pair.positions[own].tolist() == list(range(own.sum()))
        rejected = codec.decode(line(codec, pair, 2))
        assert rejected.startswith(codec.decode(pair.ids[pair.branches == 0]))
        assert set(pair.sides[pair.branches == 1].tolist()) == {0, 1}
        # The prompt's last id begins each branch, and belongs to no side.
        assert pair.sides[pair.branches == 2].tolist() == [0] + [2] * (
            (pair.branches == 2).sum() - 1
        )
        assert not pair.sides[pair.branches == 0].any() and not pair.segments.any()


def test_every_response_id_of_both_sides_is_a_target_and_nothing_else(codec):
    (pair, *_), _ = pairs_of(codec, episode())
    row = packed_row([vars(pair) | {"id": b"t0"}], Dropping.of(), 0, 128)
    trained = row["targets"][row["weights"] > 0]
    np.testing.assert_array_equal(trained, pair.ids[pair.sides > 0])
    np.testing.assert_array_equal(row["sides"][row["weights"] > 0], pair.sides[pair.sides > 0])


def test_a_row_numbers_its_pairs_and_a_trajectory_pair_has_two_segments(codec):
    steps, _ = pairs_of(codec, episode())
    won, lost = episode("w", 2), replace(episode("l", 3), success=False, game="game/w")
    (trees,) = trajectory_pairs(codec, [won], lost_trees(codec, [lost], 200), 400, PairCounts())
    stored = [vars(pair) | {"id": b"x"} for pair in (steps[0], trees, steps[1])]
    row = packed_row(stored, Dropping.of(), 0, 600)
    for number, segments in ((1, {1}), (2, {2, 3}), (3, {4})):
        assert set(row["segment_ids"][row["pairs"] == number].tolist()) == segments
    assert row["pairs"].max() == 3 and not row["pairs"][row["sides"] == 0].any()


@pytest.mark.parametrize("unit", ["turn", "example"])
def test_both_sides_of_a_pair_have_one_draw(codec, unit):
    made, _ = pairs_of(codec, *(episode(f"t{number}") for number in range(20)))
    dropping = Dropping.of(fraction=0.5, unit=unit)
    seen = set()
    for pair in made:
        row = packed_row([vars(pair) | {"id": pair.id.encode()}], dropping, 0, 200)
        weights = dropped_weights({k: v[None] for k, v in row.items()}, 0.5)["weights"][0]
        actions = (row["roles"] == Role.ACTION) & (row["sides"] > 0)
        drops = [not weights[actions & (row["sides"] == side)].any() for side in (1, 2)]
        assert drops[0] == drops[1]
        seen.add(drops[0])
        assert weights[(row["roles"] == Role.REASONING) & (row["sides"] > 0)].all()
    assert seen == {True, False}


def test_a_rejected_response_of_another_state_is_admissible_and_another_one(codec):
    only = replace(episode().steps[0], admissible_commands=("open cabinet 1",))
    lone = replace(episode(), steps=(only, *episode().steps[1:]))
    made, counts = pairs_of(codec, lone)
    assert [pair.first_step for pair in made] == [1, 2]
    assert counts.left_out == {"no_rejected": 1}
    silent = replace(episode().steps[1], thought=None, provenance=None)
    wrong = replace(episode().steps[2], trained=False)
    steps = (episode().steps[0], silent, wrong)
    _, counts = pairs_of(codec, replace(episode(), steps=steps))
    assert counts.left_out["no_thought"] == counts.left_out["untrained"] == 1
    assert list(counts.lines())[1:] == [
        "left out: 1 of a step without a thought",
        "left out: 1 of a step marked as not trained on",
    ]


def test_a_response_of_another_episode_is_taken_from_the_same_state_alone(codec):
    expert = episode()
    second = replace(expert.steps[1], action="open cabinet 7")
    other = replace(expert, id="other", steps=(expert.steps[0], second, expert.steps[2]))
    made, counts = pairs_of(codec, expert, answers=SameState(codec, [other]))
    assert [pair.first_step for pair in made] == [1], "after another action the states differ"
    assert "open cabinet 7" in codec.decode(made[0].ids[made[0].sides == 2])
    assert counts.left_out == {"no_rejected": 2}
    elsewhere = replace(other, game="another game")
    assert not pairs_of(codec, expert, answers=SameState(codec, [elsewhere]))[0]


def test_a_triple_crosses_the_rejected_thought_with_the_chosen_action(codec):
    made, _ = pairs_of(codec, episode(), triples=True)
    for pair in made:
        sides = [codec.decode(pair.ids[pair.sides == side]) for side in (1, 2, 3)]
        thoughts, actions = zip(*(side.split("<action>") for side in sides), strict=True)
        assert thoughts[2] == thoughts[1] != thoughts[0]
        assert actions[2] == actions[0] != actions[1]
    vague = tuple(replace(step, thought="i need a plate.") for step in episode().steps)
    made, counts = pairs_of(codec, replace(episode(), steps=vague), triples=True)
    assert not made and counts.left_out == {"unnamed": 3}, "such a thought supports any action"


def test_a_lost_episode_is_cut_to_the_won_ones_length_and_a_few_steps(codec):
    won = episode("w", 2)
    lost = replace(episode("l", 9), success=False, game=won.game)
    trees = lost_trees(codec, [lost, replace(won, id="another")], 999)
    assert len(trees[won.game]) == 1, "a won episode is no rejected one"
    counts = PairCounts()
    (pair,) = trajectory_pairs(codec, [won], trees, 999, counts)
    assert pair.steps.tolist() == [0, 1, *range(7)]
    whole = next(iter(trajectory_examples(codec, won, "cot", 999)))
    np.testing.assert_array_equal(pair.ids[pair.segments == 0], whole.ids)
    written = codec.decode(pair.ids[pair.sides == 2])
    assert written.count("<think>") == 7 and written.endswith("<|im_end|>")
    assert not list(trajectory_pairs(codec, [won], trees, 100, counts))
    assert not list(trajectory_pairs(codec, [episode("x")], trees, 999, counts))
    assert counts.left_out == {"too_long": 1, "no_lost": 1}


# ---- the store


@pytest.fixture
def stored(codec, tmp_path):
    made, counts = pairs_of(codec, episode())
    return made, write_pairs(tmp_path / "pairs", made, counts)


def test_pairs_come_back_from_the_store(stored):
    made, source = stored
    again = PairSource(source.folder)
    assert len(again) == 3 and again.lines() == ["3 pairs"]
    for pair, example in zip(made, again, strict=True):
        for field in dataclasses.fields(pair):
            expected = getattr(pair, field.name)
            expected = expected.encode() if field.name == "id" else expected
            np.testing.assert_array_equal(example[field.name], expected)


def test_a_reference_is_of_one_model_and_of_these_pairs(stored):
    made, source = stored
    model, other = "a" * 32, "b" * 32
    log_probs = [np.arange(len(pair.ids), dtype=np.float32) for pair in made]
    source.keep_reference(model, log_probs)
    kept = source.with_reference(model)
    for own, example in zip(log_probs, kept, strict=True):
        np.testing.assert_array_equal(example["reference"], own)
    with pytest.raises(DataError, match=r"no reference log-probabilities of the model bbbb.*aaaa"):
        source.with_reference(other)
    for suffix in (".npy", ".json"):
        file = source.folder / f"reference-{model[:12]}{suffix}"
        file.rename(source.folder / f"reference-{other[:12]}{suffix}")
    with pytest.raises(DataError, match=r"of the model aaaaaaaaaaaa, not of bbbbbbbbbbbb; delete"):
        source.with_reference(other)


def test_a_reference_that_is_not_finite_or_of_other_pairs_is_refused(stored):
    made, source = stored
    log_probs = [np.zeros(len(pair.ids)) for pair in made]
    log_probs[1][3] = np.nan
    with pytest.raises(DataError, match=r"pair 1 \('t0'\).*1 of them not finite"):
        source.keep_reference("a" * 32, log_probs)
    with pytest.raises(DataError, match=r"pair 0 \('t0'\): the reference gives 2"):
        source.keep_reference("a" * 32, [np.zeros(2)])


def test_a_damaged_folder_says_so(stored, tmp_path, codec):
    _, source = stored
    np.save(source.folder / "ids.npy", np.zeros(3, np.int32))
    with pytest.raises(DataError, match=r"ids\.npy: not as long as pairs\.json says"):
        PairSource(source.folder)
    (source.folder / "ids.npy").unlink()
    with pytest.raises(DataError, match="not a complete folder of pairs"):
        PairSource(source.folder)
    with pytest.raises(DataError, match="no pair; 0 pairs"):
        write_pairs(tmp_path / "none", [], PairCounts())
