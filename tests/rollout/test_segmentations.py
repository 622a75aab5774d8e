"""Responses in every segmentation that a tokenizer gives them: stopped, parsed, recorded, gone on.

A tokenizer merges across the edges of tags (`><`, `.</`), so one text has many sequences of ids.
An untrained model may write any of them.
"""

import itertools
import re

import pytest
from helpers import tiny
from helpers.rollouts import Generation, RulePolicy, games, play_games

from cotjax import formats
from cotjax.data.codec import Codec
from cotjax.envs.base import Observation
from cotjax.rollout.episode import read_response
from cotjax.rollout.tokens import action_ids
from cotjax.sample.vocabulary import stop_table

THOUGHTS = (
    "i need it.", "It's on shelf 2, isn't it?", "a > b, so go", "no tag: x</y", "see <this>",
    "12 cups; 3 mugs", "naïve café 你好 🙂", "one\ntwo", "(maybe)", "'so'", '"so"', "50%", "a/b/",
    "done!", "think>", "<", "...", None,
)  # fmt: skip
ACTIONS = (
    "look", "go to cabinet 12", "take mug 3 from shelf 1", "put apple 1 in/on fridge 1",
    'say "it\'s 7."', "öffne tür 1", "type x<y>/", "wait...",
)  # fmt: skip
# Between tags and content, and after the response.
SHAPES = (("", "", ""), (" ", "", "<|im_end|>"), ("\n", "\n", "\n"), (" ", "\n\n", " Then i wait."))
RESPONSES = [
    (thought, action, *SHAPES[(number + turn) % len(SHAPES)])
    for turn in (0, 1)
    for number, (thought, action) in enumerate(itertools.product(THOUGHTS, ACTIONS))
][:200]
TAG = re.compile("|".join(map(re.escape, formats.TAGS)))


def written(thought, action, pad, gap, end):
    """The response as a model writes it, and all of it that follows its `<action>`."""
    acting = f"{pad}{action}{pad}</action>{end}"
    if thought is None:
        return f"<action>{acting}", acting
    return f"<think>{pad}{thought}{pad}</think>{gap}<action>{acting}", acting


def segmentations(codec, text):
    """Ids of the text: as a whole, cut at tags, cut next to each tag's edges, by character."""
    edges = {at for tag in TAG.finditer(text) for at in (tag.start(), tag.end())}
    near = {at + step for at in edges for step in (-2, -1, 0, 1, 2)}
    near = sorted(at for at in near if 0 < at < len(text))
    cuts = [(), sorted(edges), near, range(1, len(text)), *((at,) for at in near)]
    found = set()
    for cut in cuts:
        pieces = [text[a:b] for a, b in itertools.pairwise((0, *cut, len(text)))]
        found.add(tuple(id for piece in pieces for id in codec.encode(piece)))
    return sorted(found)


def sampled(table, ids):
    """What a sampler returns of these ids: those up to the one that ends a stop text."""
    state = 0
    for count, id in enumerate(ids, 1):
        state = table[state, id]
        if state == len(table):
            return list(ids[:count])
    pytest.fail("it would never stop")


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def codec(request):
    if request.param == "tiny":
        return tiny.subword_codec("<|im_start|>", "<|im_end|>")
    return Codec.load(request.getfixturevalue("smollm2").folder)


@pytest.fixture(scope="module")
def table(codec):
    return stop_table(codec.stop_texts, len(codec.pieces), codec.pieces)


def test_the_tokenizer_merges_across_tags(codec):
    assert len(RESPONSES) == len(set(RESPONSES)) == 200
    whole = codec.encode("i need it.</think><action>look</action>")
    pieces = [codec.pieces[id] for id in whole]
    assert any(piece in ("><", ".</") for piece in pieces), pieces
    assert len(segmentations(codec, "<think>a.</think><action>look</action>")) > 4


def test_every_valid_response_is_read_in_every_segmentation(codec, table):
    seen = Observation("You see.", ("look",), False, False)
    counted = 0
    for response in RESPONSES:
        thought, action = response[:2]
        for prefilled, text in enumerate(written(*response)):
            for ids in segmentations(codec, text):
                kept = sampled(table, ids)
                read = read_response(
                    Generation(kept, None),
                    codec,
                    seen,
                    prefix="<action>" if prefilled else "",
                    prefilled=bool(prefilled),
                    seed=0,
                )
                assert read.valid, (read.reason, text, kept)
                assert read.action == formats.normalize_action(action)
                assert read.thought == (None if prefilled else thought)
                assert list(read.ids) == kept
                counted += 1
    assert counted > 2_000


def test_the_ids_of_an_action_are_those_sampled_or_those_of_its_text(codec, table):
    whole = 0
    for response in RESPONSES:
        action = formats.normalize_action(response[1])
        text, _ = written(*response)
        for ids in segmentations(codec, text):
            kept = sampled(table, ids)
            inside = action_ids(codec, kept, action, opened="")
            if inside is None:
                continue
            whole += 1
            assert formats.normalize_action(codec.decode(inside)) == action
            starts = range(len(kept) - len(inside) + 1)
            assert any(kept[at : at + len(inside)] == inside for at in starts)
    assert whole > 200


class Says(RulePolicy):
    """Answers each game's number with ids of its own."""

    def __init__(self, codec, answers, **how):
        super().__init__(codec, slots=1, max_length=4_000, **how)
        self.answers, self.asked = answers, 0

    def sample(self, prefixes, **how):
        (slot,) = prefixes
        ids = self.answers[bool(prefixes[slot])]
        return {slot: Generation(ids, None)}


def test_recorded_ids_are_exactly_those_sampled_and_the_next_prompt_goes_on_with_them(codec, table):
    for number, response in enumerate(RESPONSES[::4]):
        texts = written(*response)
        choices = [segmentations(codec, text) for text in texts]
        answers = [sampled(table, choice[number % len(choice)]) for choice in choices]
        for driver in ("cot", "prompt"):
            policy = Says(codec, answers)
            (episode,) = play_games(codec, games(3), driver, policy=policy, max_steps=2)
            first, second = episode.steps
            action = formats.normalize_action(response[1])
            assert first.executed == second.executed == action
            assert list(first.prompt.ids) == answers[1]
            if driver == "cot":
                assert list(first.cot.ids) == answers[0]
            opened = "" if driver == "cot" else "<action>"
            inside = action_ids(codec, answers[driver == "prompt"], action, opened=opened)
            if inside is None:
                inside = codec.encode_plain(action, "the action")
            start = [*codec.action_prefix, *inside, *codec.stop[0], *codec.stop[1]]
            assert list(second.prompt_ids[: len(start)]) == start
            prompts = [id for step in episode.steps for id in step.prompt_ids]
            assert prompts == policy.prompts[0]
