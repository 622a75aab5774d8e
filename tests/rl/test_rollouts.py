"""Played episodes as rows of a policy batch: from their ids alone, with nothing else trained on."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny
from helpers.rollouts import as_record, games, play_games

from cotjax.data.pairs import PairCounts, step_pairs
from cotjax.data.rollouts import PlayedTurn, played_examples, policy_rows
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, Role
from cotjax.rl.pairs import SampledAnswers, lost_episodes
from cotjax.rl.records import check_sampled, name_of, turns_of


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


@pytest.fixture(scope="module")
def records(codec):
    """Episodes of 3, 1 and 2 steps, all won: each opens one cabinet after another."""
    return [as_record(episode) for episode in play_games(codec, games(3, 1, 2), temperature=1.0)]


def examples_of(codec, record, max_length=400):
    turns = turns_of(record, codec)
    # Each id has its own log-probability, so that a shift would show.
    numbered = [
        replace(turn, log_probs=tuple(-(number + 1 + at / 100) for at in range(len(turn.ids))))
        for number, turn in enumerate(turns)
    ]
    return played_examples(
        codec, name_of(record), numbered, [float(n) + 1 for n in range(len(turns))], max_length
    )


def rows_of(codec, records, max_length=400, **options):
    plays = {name_of(record): examples_of(codec, record, max_length) for record in records}
    steps = {name_of(record): len(record.steps) for record in records}
    settings = {
        "row_length": 160,
        "multiple": 2,
        "dropping": Dropping.of(),
        "update": 0,
        **options,
    }
    return policy_rows(plays, steps, **settings)


def test_an_episode_is_the_tree_of_its_ids(codec, records):
    record = next(record for record in records if record.game.id == "g3")
    (example,) = examples_of(codec, record)
    prompt = []
    for number, turn in enumerate(record.steps):
        prompt += turn.prompt_ids
        own = example.branches == number + 1
        trunk = example.ids[(example.branches == 0) & (np.arange(len(own)) < np.argmax(own))]
        assert trunk.tolist() == prompt, "what the policy read"
        assert example.ids[own].tolist() == list(turn.cot.ids), "what it wrote"
        assert example.positions[own].tolist() == list(
            range(len(prompt), len(prompt) + len(turn.cot.ids))
        )
        assert set(example.advantages[own].tolist()) == {number + 1}
    assert example.sampled.sum() == sum(len(turn.cot.ids) for turn in record.steps)


def test_a_batch_trains_on_every_sampled_id_once_and_on_nothing_else(codec, records):
    made = rows_of(codec, records)
    batch = made.batch
    assert (made.trajectories, made.steps, made.left_out) == (3, 6, 0)
    assert len(batch["ids"]) % 2 == 0
    sampled = [id for record in records for turn in record.steps for id in turn.cot.ids]
    trained = batch["weights"] > 0
    assert sorted(batch["targets"][trained].tolist()) == sorted(sampled)
    assert set(np.unique(batch["roles"][trained])) == {
        Role.REASONING,
        Role.ACTION_OPEN,
        Role.ACTION,
        Role.ACTION_CLOSE,
    }
    assert (batch["sampler"][trained] < 0).all() and not batch["sampler"][~trained].any()
    whole = np.floor(-batch["sampler"][trained])
    np.testing.assert_array_equal(whole, batch["advantages"][trained])
    assert not batch["advantages"][~trained].any()
    np.testing.assert_array_equal(batch["old"], batch["sampler"])
    np.testing.assert_array_equal(batch["kl_weights"], batch["weights"])


def test_a_prefix_is_not_trained_on_and_an_end_that_was_not_sampled_is_not_there(codec):
    prefix = codec.prefill("<think>")
    thought = codec.encode("i need a plate. </think><action> look </action>")
    turn = PlayedTurn((5, 6), tuple(prefix), tuple(thought), (-0.5,) * len(thought), True)
    (example,) = played_examples(codec, "play", [turn], [1.0], 99)
    own = example.branches == 1
    assert example.roles[own].tolist()[: len(prefix)] == [Role.PROMPT] * len(prefix)
    assert example.roles[own].tolist()[len(prefix)] == Role.REASONING
    assert Role.END not in example.roles and Role.ACTION in example.roles
    assert example.sampled[own].tolist() == [0.0] * len(prefix) + [1.0] * len(thought)
    invalid = replace(turn, valid=False)
    (example,) = played_examples(codec, "play", [invalid], [1.0], 99)
    roles = set(example.roles[example.sampled > 0].tolist())
    assert roles == {Role.REASONING}, "there is no action to drop"


def test_an_end_that_was_sampled_is_trained_on_once(codec, records):
    """As the end of its branch; the same end in the next prompt is the trunk's."""
    record = next(record for record in records if record.game.id == "g3")
    end, turns = codec.encode(codec.template.response_end), turns_of(record, codec)
    turns = [
        replace(turn, ids=(*turn.ids, *end), log_probs=(-0.5,) * (len(turn.ids) + 1))
        for turn in turns
    ]
    (example,) = played_examples(codec, "play", turns, [1.0, 2.0, 3.0], 400)
    ends = np.flatnonzero(example.roles == Role.END)
    assert example.ids[ends].tolist() == end * 3 and example.branches[ends].tolist() == [1, 2, 3]
    dropping = Dropping.of(fraction=1.0)
    options = {"row_length": 400, "multiple": 1, "dropping": dropping, "update": 0}
    batch = policy_rows({"play": [example]}, {"play": 3}, **options).batch
    trained = batch["roles"][batch["weights"] > 0].tolist()
    assert trained.count(Role.END) == 3 and Role.ACTION not in trained, "no part of the action"


def test_a_token_that_holds_part_of_a_tag_is_the_tags():
    codec = tiny.subword_codec()
    ids = codec.encode("<think> i need it. </think><action> open cabinet 1 </action>")
    assert any("<" in codec.pieces[id].strip("<") for id in ids), "tokens cross the edges of tags"
    turn = PlayedTurn((5,), (), tuple(ids), (-0.5,) * len(ids), True)
    (example,) = played_examples(codec, "play", [turn], [1.0], 99)
    action = "".join(codec.pieces[id] for id in example.ids[example.roles == Role.ACTION])
    assert action.strip() and action.strip() in "open cabinet 1" and "<" not in action


def test_a_response_without_a_sampled_id_is_left_out_and_the_others_keep_their_steps(
    codec, records
):
    record = next(record for record in records if record.game.id == "g3")
    turns = turns_of(record, codec)
    turns[1] = replace(turns[1], ids=(), log_probs=())
    (example,) = played_examples(codec, "play", turns, [1.0, 2.0, 3.0], 400)
    assert example.steps.tolist() == [0, 2]
    assert set(example.advantages[example.sampled > 0].tolist()) == {1.0, 3.0}
    made = policy_rows(
        {"play": [example]}, {"play": 3}, row_length=200, multiple=1, dropping=Dropping.of(),
        update=0,
    )  # fmt: skip
    assert (made.steps, made.left_out) == (2, 1)


def test_a_play_longer_than_an_example_counts_as_one_with_all_of_its_tokens(codec, records):
    record = next(record for record in records if record.game.id == "g3")
    longest = max(len(example.ids) for example in examples_of(codec, record))
    split = examples_of(codec, record, longest - 1)
    assert len(split) > 1
    whole, parts = (rows_of(codec, [record], length) for length in (400, longest - 1))
    for made in (whole, parts):
        trained = made.batch["weights"] > 0
        assert made.batch["trajectories"].sum() == 1
        assert set(made.batch["lengths"][trained].tolist()) == {trained.sum()}
    np.testing.assert_allclose(
        (whole.batch["weights"] / whole.batch["lengths"]).sum(),
        (parts.batch["weights"] / parts.batch["lengths"]).sum(),
    )


def test_dropping_takes_action_tokens_out_of_the_policy_term_alone(codec, records):
    dropping = Dropping.of(fraction=0.5)
    full, kept = rows_of(codec, records).batch, rows_of(codec, records, dropping=dropping).batch
    gone = (full["weights"] > 0) & (kept["weights"] == 0)
    assert gone.any() and (full["roles"][gone] == Role.ACTION).all()
    for name in ("kl_weights", "budget", "lengths", "advantages", "trajectories"):
        np.testing.assert_array_equal(full[name], kept[name])
    summed = rows_of(codec, records, dropping=dropping, budget="token_sum", kl_on_dropped=False)
    np.testing.assert_array_equal(summed.batch["budget"], kept["weights"].sum(-1, keepdims=True))
    np.testing.assert_array_equal(summed.batch["kl_weights"], kept["weights"])
    other = rows_of(codec, records, dropping=dropping, update=1).batch
    assert (other["weights"] != kept["weights"]).any(), "each update draws anew"


def test_the_order_of_plays_changes_nothing(codec, records):
    one, other = rows_of(codec, records).batch, rows_of(codec, records[::-1]).batch
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_what_cannot_be_trained_on_is_refused_by_the_name_of_the_play(codec, records):
    record = records[0]
    name, turns = name_of(record), turns_of(record, codec)
    broken = replace(turns[0], log_probs=(*turns[0].log_probs[:-1], float("nan")))
    cases = {
        f"{name}, step 0: a log-probability or advantage is not finite": ([broken], [1.0]),
        f"{name}, step 0: {len(turns[0].ids)} sampled ids, but 0": (
            [replace(turns[0], log_probs=())],
            [1.0],
        ),
        f"{name}: 1 steps, but 2 advantages": (turns[:1], [1.0, 1.0]),
    }
    for message, (own, advantages) in cases.items():
        with pytest.raises(DataError, match=message):
            played_examples(codec, name, own, advantages, 400)
    with pytest.raises(UsageError, match="unknown budget 'mean'"):
        rows_of(codec, records, budget="mean")
    with pytest.raises(DataError, match="but a row has 30"):
        rows_of(codec, records, row_length=30)
    with pytest.raises(DataError, match="there is no sampled token"):
        policy_rows({}, {}, row_length=9, multiple=1, dropping=Dropping.of(), update=0)


def test_only_the_policy_as_it_is_may_have_sampled(codec, records):
    check_sampled(records[0])
    for name, value in {"temperature": 0.7, "top_p": 0.9, "top_k": 5}.items():
        other = records[0].model_copy(
            update={"elicitation": records[0].elicitation | {name: value}}
        )
        with pytest.raises(DataError, match=f"{name_of(other)}: sampled with {name} {value}"):
            check_sampled(other)
    (by_prompt,) = play_games(codec, games(1), "prompt", temperature=1.0)
    with pytest.raises(DataError, match="g1#0: played by 'prompt'"):
        check_sampled(as_record(by_prompt))


# ---- pairs from records


def test_a_lost_episode_becomes_a_tree_that_ends_its_turns_as_training_does(codec):
    lost, won = play_games(codec, games(8, 1), max_steps=2, temperature=1.0)[::-1]
    assert (lost.success, won.success) == (False, True)
    trees = lost_episodes(codec, [as_record(lost), as_record(won)], 400)
    ((tree,),) = trees.values()
    assert list(trees) == ["g8"] and tree.steps.tolist() == [0, 1]
    for branch in (1, 2):
        assert tree.roles[tree.branches == branch].tolist()[-1] == Role.END


def test_a_sampled_response_is_rejected_in_the_experts_state_alone(codec):
    expert = tiny.trajectory("e", 3, game="g3")
    actions = {"g3": [step.action for step in expert.steps]}
    (episode,) = play_games(codec, games(3), "reference", references=actions)
    record = as_record(episode)
    # The policy opens the next cabinet as the expert does, so it is given another opinion here.
    changed = record.steps[1].cot.model_copy(
        update={
            "ids": tuple(codec.encode("<think> i need a plate. </think><action> look </action>")),
            "action": "look",
        }
    )
    steps = (
        record.steps[0],
        record.steps[1].model_copy(update={"cot": changed}),
        record.steps[2],
    )
    other = record.model_copy(update={"steps": steps})

    def pairs(records, expert=expert, **rest):
        answers = SampledAnswers(codec, records, **rest)
        return list(step_pairs(codec, [expert], answers, 400, PairCounts()))

    assert not pairs([record])
    (pair,) = pairs([other])
    assert pair.first_step == 1
    assert codec.decode(pair.ids[pair.sides == 2]).endswith("<action> look </action> <|im_end|>")
    assert not pairs([other], is_worse=lambda record, number: False)
    moved = replace(expert, task="put a plate in cabinet")
    assert not pairs([other], expert=moved), "another prompt is another state"
