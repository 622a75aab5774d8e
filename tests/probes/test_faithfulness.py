"""Lanham's tests recover how often an action depends on its thought, and on what of it."""

import re

import pytest
from helpers import tiny
from helpers.endpoints import serving
from helpers.traces import Said, TextPolicy, checkpoint, estimates, write_states

from cotjax.diagnostics.faithfulness import EARLY, area_over
from cotjax.errors import UsageError
from cotjax.probes.faithfulness import FaithfulnessProbe
from cotjax.probes.writing import MISTAKE, PARAPHRASE, rewritten

GAMES, STATES = 20, 3
GOLDEN = 0.6180339887
COMMANDS = (*(f"go to cabinet {n}" for n in range(1, 6)), "take mug 1 from shelf 2", "look")
WORDS = (
    "Your task is to: put a plate in fridge. You see a plate 1. state",
    "i know case it. i need a mug. so next i go to cabinet 2. look at . shelf take from hence",
    " ".join(map(str, range(100))),
    PARAPHRASE,
    MISTAKE,
)
PARTS = "i know case {}. i need a mug. so next i go to cabinet {}."


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("words"), WORDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory, codec):
    folder = tmp_path_factory.mktemp("run")
    for game in range(GAMES):
        numbers = range(game * STATES, game * STATES + STATES)
        states = [
            Said(
                PARTS.format(number, 1 + number % 5),
                f"go to cabinet {1 + number % 5}",
                "look",
                COMMANDS,
                f"state {number}.",
            )
            for number in numbers
        ]
        write_states(folder, codec, f"g{game}", states)
    return folder


def own(prompt):
    """The number of a prompt's state, and its own thought's last sentence."""
    number = int(re.findall(r"state (\d+)", prompt)[-1])
    return number, f"go to cabinet {1 + number % 5}"


def depending(share, noticing=0.0):
    """Return a rule: in this share of states the action is that of the thought, else always a1.

    `noticing`: share of states in which a sentence with another noun than "mug" changes the rest.
    """

    def rule(prompt, prefix):
        number, mine = own(prompt)
        luck = number * GOLDEN % 1
        if "</think>" not in prefix:
            wrong = not re.search(r"a mug", prefix) and "i need a" in prefix
            action = "look" if wrong and luck < noticing else mine
            return f" so </think><action> {action} </action>"
        said = re.search(r"go to cabinet (\d+)", prefix)
        told = f"go to cabinet {said[1]}" if said else "look"
        return f"{told if luck < share else mine} </action>"

    return rule


def rows_of(run, codec, rule, **settings):
    at = checkpoint(run, codec, policy := TextPolicy(codec, rule), **settings)
    probe = FaithfulnessProbe()
    probe.check(at.config)
    rows = list(probe.measure(probe.states(at), at))
    return rows, policy


def test_the_planted_dependence_is_recovered(run, codec):
    rows, _ = rows_of(run, codec, depending(0.4, noticing=0.5))
    found = estimates("faithfulness", rows)
    for percent in EARLY:
        planted = 1.0 if percent == 100 else 0.6
        assert found[f"faithfulness_same_{percent}"].value == pytest.approx(planted, abs=0.02)
    # The last quarter of the thought names the action: the curve is flat before.
    aoc = found["faithfulness_aoc_early"]
    assert aoc.low <= 0.4 * 0.875 <= aoc.high and aoc.value == pytest.approx(0.35, abs=0.02)
    assert found["faithfulness_same_filler"].value == pytest.approx(0.6, abs=0.02)
    # Two of the three sentences have a noun; a wrong one is noticed in half of the states.
    mistake = found["faithfulness_same_mistake"]
    assert {tuple(each.sentence for each in row.mistakes) for row in rows} == {(1, 2)}
    assert mistake.low <= 0.75 <= mistake.high
    assert found["faithfulness_aoc_mistake"].value == pytest.approx(1 - mistake.value)
    assert not found["faithfulness_same_paraphrase"].measured


@pytest.mark.parametrize(("share", "aoc"), [(0.0, 0.0), (1.0, 0.875)])
def test_the_area_is_0_where_no_thought_matters_and_large_where_each_does(run, codec, share, aoc):
    rows, _ = rows_of(run, codec, depending(share), faithfulness__tests=("early",))
    assert estimates("faithfulness", rows)["faithfulness_aoc_early"].value == pytest.approx(aoc)
    assert all(not row.mistakes and row.filler is None and not row.missing for row in rows)


def test_the_area_over_the_curve():
    assert area_over([1, 1, 1, 1, 1]) == 0
    assert area_over([0, 0, 0, 0, 0]) == 1
    assert area_over([0, 0, 0, 0, 1]) == pytest.approx(0.875)
    assert area_over([0, 0.25, 0.5, 0.75, 1]) == pytest.approx(0.5)


def test_what_is_forced_is_the_own_thought_changed_in_one_way(run, codec):
    rows, policy = rows_of(run, codec, depending(1.0))
    texts = [codec.decode(ids) for prefixes, _ in policy.sampled for ids in prefixes.values()]
    assert sum("</think>" not in text for text in texts) == 2 * len(rows)
    for row in rows:
        number = int(row.game[1:]) * STATES + row.turn
        thought = PARTS.format(number, 1 + number % 5)
        assert row.tokens == len(codec.encode_plain(thought, "it"))
        assert len(codec.encode_plain(row.filler.thought, "it")) == row.tokens
        assert set(row.filler.thought.replace(" ", "")) == {"."}
        for each in row.mistakes:
            words, before = each.thought.split(), thought.split()
            changed = [(a, b) for a, b in zip(words, before, strict=False) if a != b]
            assert thought.count(".") >= each.sentence and 1 <= len(changed) <= 2
            assert len(words) == len(" ".join(thought.split(". ")[: each.sentence + 1]).split())


def test_another_model_writes_paraphrases_and_mistakes(run, codec):
    def answer(messages, begun):
        text = messages[-1]["content"].rpartition("\n\n")[2]
        if (
            messages[-1]["content"].startswith(PARAPHRASE[:20])
            and "rewritten text" in (messages[-1]["content"])
        ):
            return text.replace("so next i", "hence i")
        return text.replace("mug", "plate").replace("know", "need")

    with serving(answer=answer) as endpoint:
        rows, _ = rows_of(
            run,
            codec,
            depending(1.0, noticing=1.0),
            faithfulness__tests=("paraphrase", "mistake"),
            faithfulness__writer="endpoint",
            faithfulness__written_mistakes=True,
            faithfulness__endpoint=endpoint.url,
            faithfulness__endpoint_model="m",
            states=6,
        )
        assert len(endpoint.requests) > 6
    for row in rows:
        assert row.paraphrase.thought.count("hence i go") == 1 and row.paraphrase.action == row.own
        # The last sentence came back as it was: no mistake.
        assert [each.sentence for each in row.mistakes] == [0, 1]
        assert [each.action == row.own for each in row.mistakes] == [True, False]


def test_the_checkpoint_writes_for_itself_where_it_can(run, codec):
    """This one answers in the form that it was trained on, in every second state."""

    def rule(prompt, prefix):
        if "Rewrite the following text" in prompt and not prefix:
            number = int(re.search(r"case (\d+)", prompt)[1])
            if number % 2:
                return "<think> i know. </think><action> look </action>"
            return f"i need a mug, case {number}. hence i go to cabinet {1 + number % 5}.<|im_end|>"
        return depending(1.0)(prompt, prefix)

    settings = {"faithfulness__tests": ("paraphrase",), "faithfulness__writer": "self"}
    rows, _ = rows_of(run, codec, rule, **settings)
    found = estimates("faithfulness", rows)
    assert found["faithfulness_same_paraphrase"].value == 1.0
    assert found["faithfulness_same_paraphrase"].n == GAMES * STATES / 2
    left = {row.missing.get("paraphrase") for row in rows}
    assert left == {None, "not_written"}


def test_a_tokenizer_without_the_words_writes_nothing(tmp_path):
    small = tiny.word_codec(tmp_path / "words", WORDS[:3])
    said = Said(PARTS.format(1, 2), "go to cabinet 2", "look", COMMANDS, "state 1.")
    write_states(tmp_path, small, "g0", [said])
    settings = {"faithfulness__tests": ("paraphrase", "early"), "faithfulness__writer": "self"}
    ((row,), _) = rows_of(tmp_path, small, depending(1.0), **settings)
    assert row.missing == {"paraphrase": "not_written"} and len(row.early) == 5


def test_an_answer_that_is_no_other_text_is_none():
    assert rewritten("i need a mug.", "a mug is needed.") == "a mug is needed."
    for answer in (None, "", "I need a mug.", "mug", "<think> a mug", "a " * 40):
        assert rewritten("i need a mug.", answer) is None


def test_states_without_a_thought_and_tokenizers_without_dots_are_said(tmp_path):
    codec = tiny.word_codec(tmp_path / "words", ["Your task is to: put a plate in fridge", "go"])
    codec_dots = tiny.word_codec(tmp_path / "dots", [*WORDS, "state"])
    states = [
        Said(None, "go", observation="go"),
        Said("put a plate", None, observation="go"),
        Said("put a plate", "go", observation="go"),
    ]
    write_states(tmp_path, codec_dots, "g0", states)
    rows, _ = rows_of(tmp_path, codec, lambda *_: "go </action>")
    reasons = {row.turn: row.missing for row in rows}
    tests = ("early", "mistake", "filler")
    assert reasons[0] == dict.fromkeys(tests, "no_thought")
    assert reasons[1] == dict.fromkeys(tests, "invalid")
    assert reasons[2]["mistake"] == "no_noun"
    assert estimates("faithfulness", rows)["faithfulness_same_100"].n == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tests": ("early", "late")}, "unknown test 'late'"),
        ({"tests": ()}, "tests is empty"),
        ({"mistakes": 0}, "mistakes is 0"),
        ({"writer": "me"}, "writer is 'me'"),
        ({"tests": ("paraphrase",)}, "set probes.faithfulness.writer"),
        ({"written_mistakes": True}, "written_mistakes is on"),
        ({"writer": "endpoint"}, "set probes.faithfulness.endpoint"),
    ],
)
def test_settings_out_of_range_are_refused(run, codec, settings, said):
    named = {f"faithfulness__{name}": value for name, value in settings.items()}
    config = checkpoint(run, codec, None, **named).config
    with pytest.raises(UsageError, match=said):
        FaithfulnessProbe().check(config)
