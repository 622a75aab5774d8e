"""Token in, token out: sampled ids stay as they are; a prompt that changes them is a bug."""

import pytest
from helpers import tiny
from helpers.rollouts import Generation, RulePolicy, games, play_games

from cotjax.errors import InternalError
from cotjax.rollout.tokens import action_ids, check_continues, check_prompt, text_to_stop


class Letters:
    """A codec that can write a text in several ways: "a" is 1 or 2, tags may share tokens."""

    action_prefix, stop, stop_texts = [10], ((11,),), ("</action>",)
    pieces = (
        "",
        "a",
        "a",
        "b",
        "</act",
        "ion>",
        "ion>.",
        "><action>",
        " <action",
        "> ",
        "<action>",
        "</action>",
        None,
        "b</action>",
    )

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize(
    ("ids", "opened", "found"),
    [
        ([2, 3, 11], "<action>", [2, 3]),
        ([1, 3, 11], "<action>", [1, 3]),
        ([3, 10, 2, 3, 11], "", [2, 3]),
        ([3, 3], "", None),
        ([10, 2, 3], "", None),
        ([10, 2, 2, 11], "", None),  # not the ids of this action
        # Both tags share tokens with text outside the action; the second has two tokens.
        ([3, 7, 2, 3, 4, 6], "", [2, 3]),
        ([8, 9, 1, 3, 11], "", [1, 3]),  # a blank of the action in the tag's last token
        ([10, 2, 13], "", None),  # "b" and the closing tag are one token
        ([2, 3, 11], "<action>a", None),  # a part of the action was prefilled
        ([10, 2, 3, 11, 10, 2, 2, 11], "", [2, 3]),  # the first of two
    ],
)
def test_the_ids_of_an_action_are_those_that_were_sampled(ids, opened, found):
    assert action_ids(Letters(), ids, "ab", opened=opened) == found


def test_what_the_last_token_holds_past_the_stop_is_not_looked_at():
    for ids, text in (
        ([2, 4, 6], "a</action>"),
        ([2, 4, 5], "a</action>"),
        ([2, 4, 6, 3], "a</action>.b"),
        ([2, 3], "ab"),
    ):
        assert text_to_stop(Letters(), ids, Letters().decode(ids)) == text


def test_another_encoding_of_the_same_text_is_noticed():
    check_continues("g, step 1", [10, 2, 3, 11, 5], [2, 3], Letters())
    with pytest.raises(InternalError, match="g, step 1"):
        check_continues("g, step 1", [10, 1, 3, 11, 5], [2, 3], Letters())


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def played(codec, policy, driver="cot"):
    (episode,) = play_games(codec, games(3), driver, policy=policy, max_steps=5)
    return episode


@pytest.mark.parametrize(("driver", "opened"), [("cot", 1), ("prompt", 0)])
def test_every_prompt_is_the_one_before_and_the_sampled_ids(codec, driver, opened):
    """From the record alone, by ids alone."""
    policy = RulePolicy(codec, slots=1)
    record = played(codec, policy, driver)
    prompt = []
    for number, step in enumerate(record.steps):
        if number:
            before = list(getattr(record.steps[number - 1], driver).ids)
            start = before.index(codec.action_prefix[0]) if opened else 0
            sampled = before[start:] if opened else [*codec.action_prefix, *before]
            assert list(step.prompt_ids[: len(sampled)]) == sampled
        prompt += step.prompt_ids
        assert len(prompt) == step.prompt_length
    assert prompt == policy.prompts[0] and number > 1


def test_a_cache_of_other_ids_is_noticed_though_there_are_as_many():
    check_prompt("g, step 1", [1, 2, 3], (1, 2, 3))
    for cached, at in (([1, 9, 3], 1), ([1, 2], 2), ([9, 1, 2, 3], 0)):
        with pytest.raises(InternalError, match=rf"g, step 1: .* they differ from id {at} on"):
            check_prompt("g, step 1", [1, 2, 3], cached)


def test_a_next_prompt_without_the_sampled_ids_is_an_internal_error(codec, monkeypatch):
    whole = codec.next_prompt
    monkeypatch.setattr(
        codec, "next_prompt", lambda action, observation, *state: whole(action, observation)[1:]
    )
    with pytest.raises(
        InternalError, match="g3, step 2: the next prompt does not go on with the sampled ids"
    ):
        played(codec, RulePolicy(codec, slots=1))


def test_a_cache_that_lost_ids_is_an_internal_error(codec):
    class Forgets(RulePolicy):
        def extend(self, pieces):
            super().extend(
                {slot: ids[:-1] if self.prompts[slot] else ids for slot, ids in pieces.items()}
            )

    with pytest.raises(InternalError, match="g3, step 2: the policy's cache holds"):
        played(codec, Forgets(codec, slots=1))


def test_a_policy_need_not_report_log_probabilities(codec):
    class Silent(RulePolicy):
        def sample(self, prefixes, **kwargs):
            made = super().sample(prefixes, **kwargs)
            return {slot: Generation(one.ids, None) for slot, one in made.items()}

    silent = played(codec, Silent(codec)).steps[0].cot
    assert silent.logprobs is None and silent.logprob is None
    response = played(codec, RulePolicy(codec)).steps[0].cot
    assert (
        len(response.logprobs) == len(response.ids) and sum(response.logprobs) == response.logprob
    )


@pytest.mark.parametrize(
    ("ending", "stopped", "reason"),
    [
        ("", True, None),
        (" ", True, None),
        (" look ", True, "text_after"),
        (" <action> look </action> ", True, "two_actions"),
        ("", False, "cut"),
    ],
)
def test_a_response_up_to_the_end_of_the_turn_ends_there(codec, ending, stopped, reason):
    stops = []

    class Ends(RulePolicy):
        def sample(self, prefixes, *, stop=None, **kwargs):
            made = super().sample(prefixes, **kwargs)
            stops.append(stop)
            if stop is None:
                return made
            more = codec.encode(ending) + codec.encode(codec.template.response_end) * stopped
            return {
                slot: Generation([*one.ids, *more], one.logprobs + [-0.5] * len(more), stopped)
                for slot, one in made.items()
            }

    settings = {"policy": Ends(codec, slots=1), "max_steps": 5, "to_end": True}
    (episode,) = play_games(codec, games(3), "cot", **settings)
    assert stops[:2] == [(codec.template.response_end,), None], "prompt actions as ever"
    assert {turn.cot.reason for turn in episode.steps} == {reason}
    assert episode.success == (reason is None) and episode.elicitation["to_end"]
    if reason is None:
        assert all(turn.cot.text.endswith(codec.template.response_end) for turn in episode.steps)
