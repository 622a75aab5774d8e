"""The groups of prompts and responses: every id is accounted for, whatever the template."""

import pytest
from helpers.rollouts import RulePolicy, as_record, games, play_games
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cotjax.data.codec import Codec
from cotjax.diagnostics.role_shares import GROUPS
from cotjax.formats import TEMPLATES, Example, ExampleStep, Prompt
from cotjax.probes.groups import Tokens, prompt_tokens, response_tokens
from cotjax.probes.probe import State
from cotjax.rollout.record import Record

INSTRUCTION = "Solve it.\n<think> why </think><action> what </action>"
EXAMPLE = Example(
    "t9",
    "game/t9",
    "find a cup",
    (
        ExampleStep("You see a cup 1.", "i see it.", "take cup 1", ("take cup 1", "look")),
        ExampleStep("You take it.", None, "look", ("look",)),
    ),
)
PROMPTS = {
    "task alone": Prompt(),
    "listed": Prompt("you are a robot.", "", "all"),
    "everything": Prompt("you are a robot.", INSTRUCTION, "sampled", 1, (EXAMPLE,)),
}
NAMES = list(GROUPS)


def codec_of(template: str, prompt: Prompt) -> Codec:
    """Return a codec over a byte-level tokenizer with the marks of all templates."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    marks = dict.fromkeys(mark for each in TEMPLATES.values() for mark in each.marks)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["[PAD]", *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Merges that cross the edges of tags and sentences.
    text = ".</think><action> open cabinet 1 </action> You see a cabinet 1.\n\nAdmissible actions: "
    bpe.train_from_iterator([text] * 20, trainer)
    return Codec(bpe, TEMPLATES[template], prompt)


def texts(codec: Codec, tokens: Tokens) -> dict[str, str]:
    """Return the text of each group."""
    return {name: codec.decode(tokens.only(number)) for number, name in enumerate(NAMES)}


def played(codec: Codec) -> Record:
    """Return an episode of three turns that is driven by sampled ids."""
    policy = RulePolicy(codec, max_length=9000)
    (episode,) = play_games(codec, games(8), policy=policy, max_steps=3)
    return as_record(episode)


@pytest.mark.parametrize("template", ["chatml", "llama3", "qwen3", "r1"])
@pytest.mark.parametrize("shown", PROMPTS)
def test_groups_of_a_prompt_reproduce_it(template, shown):
    prompt = PROMPTS[shown]
    codec = codec_of(template, prompt)
    record = played(codec)
    assert [turn.executed for turn in record.steps] == ["open cabinet 1"] * 3
    history = ""
    for number, turn in enumerate(record.steps):
        state = State(record, number)
        tokens = prompt_tokens(codec, record, number)
        assert tokens.ids == state.prompt_ids
        of = texts(codec, tokens)
        assert of["task"] == "Your task is to: put a plate in fridge.\n"
        listed = ""
        if prompt.lists_actions:
            key = f"{record.game.id}/{number}"
            listed = prompt.actions_line(turn.admissible_commands, key)
        assert of["admissible"] == listed
        assert of["observation"] == turn.observation + ("\n" if listed else "")
        assert "".join(of["history"].split()) == history
        assert not of["reasoning"] + of["tags"] + of["action"]
        history += "".join(f"{of['observation']}{listed} open cabinet 1".split())
        # What is left: marks and tags, and what is the same in every prompt.
        assert "".join(of["scaffold"].split()).count("<action></action>") == number
        assert ("you are a robot." in of["scaffold"]) == (shown != "task alone")
        assert ("take cup 1" in of["scaffold"]) == (shown == "everything")
        assert "cabinet" not in of["scaffold"]


def test_a_prompt_that_the_codec_does_not_write_has_no_groups():
    codec = codec_of("chatml", PROMPTS["task alone"])
    record = played(codec)
    assert prompt_tokens(codec, record, 1) is not None
    for other in (codec_of("qwen3", Prompt("you are.")), codec_of("chatml", PROMPTS["listed"])):
        assert prompt_tokens(other, record, 1) is None
    turn = record.steps[1]
    for ids in (turn.prompt_ids[1:], (*turn.prompt_ids, 5), (5, *turn.prompt_ids), ()):
        steps = (record.steps[0], turn.model_copy(update={"prompt_ids": ids}))
        assert prompt_tokens(codec, record.model_copy(update={"steps": steps}), 1) is None


@pytest.mark.parametrize("template", ["chatml", "llama3", "qwen3", "qwen3-thinking", "r1"])
def test_groups_of_a_trained_response(template):
    codec = codec_of(template, Prompt())
    ids = [i for piece, _ in codec.reasoned("i need it. yes!", "open cabinet 1") for i in piece]
    of = texts(codec, response_tokens(codec, ids))
    assert of["reasoning"].strip() == "i need it. yes!"
    assert of["action"].strip() == "open cabinet 1"
    assert "".join(of["tags"].split()) == "<think></think><action>"
    direct = [i for piece, _ in codec.direct("look") for i in piece]
    of = texts(codec, response_tokens(codec, direct))
    assert (of["reasoning"], of["action"].strip()) == ("", "look")
    assert of["tags"] == codec.template.direct_open + "<action>"


def test_a_token_across_a_tags_edge_belongs_to_what_it_holds_of_thought_or_action():
    codec = codec_of("chatml", Prompt())
    text = "<think> i need it.</think><action>look</action><|im_end|>"
    ids = codec.encode(text)
    pieces = [codec.pieces[i] for i in ids]
    tokens = response_tokens(codec, ids)
    assert codec.decode(tokens.ids).startswith("<think> i need it.</think><action>look")
    across = next(at for at, piece in enumerate(pieces) if piece.startswith(".<"))
    assert NAMES[tokens.groups[across]] == "reasoning"
    assert tokens.groups[-1] == NAMES.index("action"), "nothing behind the action"
    assert response_tokens(codec, codec.encode("i look")).ids == []
    assert response_tokens(codec, codec.encode("<action>look")).ids == []
