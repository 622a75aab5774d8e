"""Choosing among the admissible actions, and the instruction not to reason."""

import itertools
import random

import pytest
from helpers import tiny
from helpers.rollouts import Cabinets, RulePolicy, as_record, games, play_games

from cotjax.errors import DataError, UsageError
from cotjax.formats import ACTION_OPEN
from cotjax.rollout.constrained import action_branches, choose, reasoning_before
from cotjax.rollout.decoding import instruction_ids
from cotjax.rollout.elicitation import kinds_decoded
from cotjax.rollout.record import KINDS, read_record, write_record


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), [*tiny.TINY_WORDS, "drawer", "12"])


COMMANDS = ("open drawer 12", "open drawer 1", "look", "open drawer 1")


def chosen(commands, logprobs, by="total"):
    branches = [list(range(len(each))) for each in logprobs]
    return choose(commands, branches, logprobs, prefix_ids=[7], close=1, by=by)


def test_the_most_likely_action_is_chosen_by_total_or_by_mean():
    choice = chosen(("long", "short"), [[-0.5] * 4, [-1.0, -0.5]])
    assert (choice.action, choice.by_total, choice.by_mean) == ("short", "short", "long")
    assert chosen(("long", "short"), [[-0.5] * 4, [-1.0, -0.5]], by="mean").action == "long"
    assert choice.logprobs == (-2.0, -1.5) and choice.tokens == (4, 2)
    assert choice.ids == (0,), "without `</action>`"
    assert choice.prefix_ids == (7,)


def test_of_equal_scores_the_first_that_is_listed_wins():
    close = [-1.0, -1.0 - 1e-9]  # the same in a record
    assert chosen(("b", "a", "b"), [close, [-1.0, -1.0], close]).by_total == "b"
    assert chosen(("b", "a"), [[-1.0, -1.0], [-0.9, -1.0]]).by_mean == "a"


def test_where_nothing_is_admissible_nothing_is_chosen():
    choice = chosen((), [])
    assert (choice.action, choice.by_total, choice.by_mean) == (None, None, None)
    assert choice.ids == choice.logprobs == choice.tokens == ()


def test_an_action_ends_with_its_tag(codec):
    close = list(codec.stop[0])
    for command, ids in zip(COMMANDS, action_branches(codec, COMMANDS), strict=True):
        assert ids == [*codec.encode_plain(command, "it", lenient=True), *close]


@pytest.fixture(scope="module")
def subwords():
    return tiny.subword_codec()


# What a CoT response says, and what the action is chosen after.
RESPONSES = [
    ("<think>i need it.</think><action>look</action>", "<think>i need it.</think><action>"),
    ("<think>i need it.</think> <action>look", "<think>i need it.</think> <action>"),
    ("<think>i need it", "<think>i need it</think><action>"),
    ("<think>i need it.</action>", "<think>i need it.</think><action>"),
    ("<think>i need it.</think><|im_end|>", "<think>i need it.</think><action>"),
    ("<action>look</action>", "<action>"),
    ("look around</action>", "look around<action>"),
    ("</action>", "<action>"),
    ("", "<action>"),
]


@pytest.mark.parametrize(("said", "expected"), RESPONSES)
def test_a_choice_follows_the_reasoning_however_it_is_spelled(subwords, said, expected):
    draw, pieces = random.Random(0), list(enumerate(subwords.pieces))
    for _ in range(40):
        ids, text = [], said
        while text:
            id, piece = draw.choice([one for one in pieces if one[1] and text.startswith(one[1])])
            ids.append(id)
            text = text[len(piece) :]
        before = reasoning_before(subwords, ids)
        assert "".join(subwords.pieces[id] for id in before).replace(" ", "") == expected.replace(
            " ", ""
        )
        # Whole tokens of what is kept stay as they were sampled.
        end = min(expected.find(tag) for tag in ("</think>", "<action>") if tag in expected)
        ends = itertools.accumulate(len(subwords.pieces[id]) for id in ids)
        kept = sum(each <= end for each in ends)
        assert before[:kept] == ids[:kept]


def test_words_that_straddle_a_tag_are_encoded_again_without_it(subwords):
    straddling = [id for id, piece in enumerate(subwords.pieces) if piece == "><"]
    if straddling:
        tags = subwords.encode("<think>a</think")
        ids = [*tags, *straddling, *subwords.encode("action>look")]
        text = "".join(subwords.pieces[id] for id in reasoning_before(subwords, ids))
        assert text == "<think>a</think><action>"


def test_kinds_are_decoded_in_one_order_with_what_they_need():
    assert kinds_decoded("cot") == kinds_decoded("reference") == ("cot", "prompt")
    assert kinds_decoded("prompt") == ("prompt",) == kinds_decoded("prompt", ())
    assert kinds_decoded("cot_constrained") == ("cot", "cot_constrained")
    assert kinds_decoded("reference", KINDS) == KINDS
    assert kinds_decoded("cot", ("instructed",)) == ("cot", "instructed")


def test_constrained_prompt_actions_drive_and_go_on_with_the_ids_that_were_scored(codec, tmp_path):
    policy, sent = RulePolicy(codec), Cabinets()
    (episode,) = play_games(
        codec, games(3), "prompt_constrained", policy=policy, environments=sent, max_steps=3
    )
    assert [action for _, action in sent.sent] == ["look"] * 3
    for before, after in itertools.pairwise(episode.steps):
        choice = before.prompt_constrained
        assert before.executed == choice.action == choice.by_total == "look"
        assert choice.prefix_ids == tuple(codec.action_prefix)
        assert choice.ids == tuple(codec.encode_plain("look", "it", lenient=True))
        start = [*choice.prefix_ids, *choice.ids, *codec.stop[0]]
        assert list(after.prompt_ids[: len(start)]) == start
        assert before.cot is before.prompt is before.cot_constrained is None
    assert len(policy.scored) == 3 and not policy.sampled, "one pass a turn, and nothing sampled"
    assert episode.elicitation["constrained_by"] == "total"
    assert "instruction" not in episode.elicitation
    path = tmp_path / "record.json"
    write_record(path, as_record(episode))
    assert read_record(path) == as_record(episode)


def test_the_constrained_cot_action_follows_the_reasoning_that_is_sampled_as_ever(codec):
    policy = RulePolicy(codec)
    (episode,) = play_games(codec, games(1), "cot_constrained", policy=policy)
    (free,) = play_games(codec, games(1), "cot")
    (turn,) = episode.steps
    assert episode.success and turn.executed == "open cabinet 1" == turn.cot_constrained.action
    assert turn.cot == free.steps[0].cot, "the same response, by the same seed"
    reasoned = codec.decode(turn.cot_constrained.prefix_ids)
    assert "</think>" in reasoned and reasoned.strip().endswith(ACTION_OPEN)
    assert free.steps[0].cot_constrained is None and "constrained_by" not in free.elicitation


def test_by_mean_another_action_may_drive(codec):
    (episode,) = play_games(codec, games(1), "cot_constrained", constrained_by="mean", max_steps=1)
    choice = episode.steps[0].cot_constrained
    means = [total / n for total, n in zip(choice.logprobs, choice.tokens, strict=True)]
    assert choice.by_mean == episode.steps[0].admissible_commands[means.index(max(means))]
    assert episode.steps[0].executed == choice.action == choice.by_mean


def test_expert_states_are_answered_in_every_kind_that_is_asked_for(codec):
    references, how = {"g1": ["open cabinet 1"]}, {"kinds": KINDS, "instruction": "look ."}
    episodes = play_games(codec, games(1), "reference", references=references, **how)
    (turn,) = episodes[0].steps
    assert all(getattr(turn, kind) for kind in KINDS)
    assert turn.cot_constrained.by_total == "open cabinet 1"
    assert turn.prompt_constrained.by_total == turn.instructed.action == "look"


def test_the_instruction_comes_before_the_response_opens_and_stays_out_of_later_prompts(codec):
    policy = RulePolicy(codec)
    how = {"policy": policy, "max_steps": 2, "instruction": "look ."}
    (episode,) = play_games(codec, games(3), "instructed", **how)
    opening = codec.response_open
    for (prefixes, max_new, _, back), turn in zip(policy.sampled, episode.steps, strict=True):
        assert back == len(opening) and max_new == 96
        assert list(turn.prompt_ids[-back:]) == opening
        assert prefixes[0] == [*codec.encode_plain("\nlook .", "it"), *opening]
        assert turn.instructed.action == turn.executed == "look"
    assert "look ." not in codec.decode(policy.prompts[0]) and len(policy.sampled) == 2
    assert episode.elicitation["instruction"] == "look ."


def test_an_instruction_of_unknown_words_is_refused(codec):
    with pytest.raises(DataError, match=r"evaluate\.instruction.*'no'.*leave 'instructed' out"):
        instruction_ids(codec, "no dragons here")


def test_nothing_can_be_chosen_where_the_world_lists_nothing(codec):
    class Silent(Cabinets):
        def reset(self, games):
            return {
                slot: (task, type(first)(first.text, None, False, False))
                for slot, (task, first) in super().reset(games).items()
            }

    for driver in ("prompt_constrained", "cot_constrained"):
        with pytest.raises(UsageError, match=r"g3, step 1: the world lists no admissible actions"):
            play_games(codec, games(3), driver, environments=Silent())


def test_a_prompt_without_room_for_the_longest_action_ends_the_episode(codec):
    def ended(max_length):
        policy = RulePolicy(codec, max_length=max_length)
        (episode,) = play_games(codec, games(1), "cot_constrained", policy=policy)
        return episode.ended, len(episode.steps)

    (whole,) = play_games(codec, games(1), "cot_constrained")
    prompt = whole.steps[0].prompt_length
    action = len(codec.action_prefix) + max(
        map(len, action_branches(codec, whole.steps[0].admissible_commands))
    )
    needed = prompt + 96 + 8 + len(codec.encode("</think>")) + action
    assert ended(needed) == ("won", 1) and ended(needed - 1) == ("length", 0)
