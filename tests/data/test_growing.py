"""Growing texts as examples: roles by position, masks of SFT-2 and SFT-3, and pairs of choices."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.data.codec import Codec
from cotjax.data.growing import choice_pair, choice_pairs, growing_source, lesson_example
from cotjax.data.growing_text import TOKENS
from cotjax.data.lesson_files import read_choices, read_lessons, write_texts
from cotjax.data.pairs import PairCounts
from cotjax.data.pipeline import dropped_weights, packed_row
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.envs.lessons import Choice, Lesson
from cotjax.envs.search_qa.growing import SearchPieces
from cotjax.errors import DataError
from cotjax.formats import CHATML, Prompt
from cotjax.masking import RESPONSE_ROLES, Dropping, Role, labels
from cotjax.model import decoder
from cotjax.objectives.supervised import supervised
from cotjax.train.step import FIELDS

PROMPT = Prompt(growing=SearchPieces())
RESULTS = "<search_result> result 1: Ko Po: Ko Po lies in Ma Ti. </search_result>\n\n"
TEXT = (
    f"I need the land of Ko Po. So I search. <begin_search> Ko Po land </end_search>{RESULTS}"
    "Result 1 says that it is Ma Ti. </think>\n\n\\boxed{Ma Ti}"
)
LESSON = Lesson("l", "What is the land of Ko Po?", "You can search 10 times.", TEXT)
CHOICE = Choice(
    "c",
    LESSON.task,
    LESSON.observation,
    "I need the land of Ko Po.",
    " So I search. <begin_search> Ko Po land </end_search>",
    " So it is Ma Ti.",
    True,
)
WORLD_MODEL = (Role.OBSERVATION, *RESPONSE_ROLES)


@pytest.fixture(scope="module")
def codec():
    texts = ("I look.", LESSON.task, LESSON.observation, TEXT, "Your task is to: .")
    return Codec(build_word_tokenizer(texts, CHATML, TOKENS), CHATML, PROMPT)


def of_role(codec, example, *roles):
    return codec.decode(example.ids[np.isin(example.roles, roles)].tolist())


def test_roles_are_those_of_the_published_format(codec):
    example = lesson_example(codec, LESSON)
    own = {role: of_role(codec, example, role) for role in Role if role != Role.PAD}
    assert own[Role.PROMPT].endswith("<|im_start|> assistant <think>")
    assert "You can search 10 times." in own[Role.PROMPT]
    assert own[Role.OBSERVATION] == RESULTS.strip().replace(":", " :")
    assert own[Role.ACTION_OPEN] == "<begin_search> \\boxed{"
    assert own[Role.ACTION] == "Ko Po land" and own[Role.ANSWER] == "Ma Ti"
    assert own[Role.ACTION_CLOSE] == "</end_search> }"
    assert own[Role.END] == "<|im_end|>"
    thought = "I need the land of Ko Po. So I search. Result 1 says that it is Ma Ti. </think>"
    assert own[Role.REASONING] == thought
    counts = np.bincount(example.roles, minlength=len(Role))
    assert counts.sum() == len(example.ids) and counts[Role.PAD] == 0
    assert example.steps.tolist() == [0, 1]
    assert of_role(codec, example, *Role).endswith(own[Role.END])


def test_a_slip_is_not_trained_on(codec):
    slip = replace(
        LESSON, text=f"I look. <begin_search> Ti </end_search>{RESULTS}{TEXT}", slips=(0,)
    )
    example = lesson_example(codec, slip)
    assert of_role(codec, example, Role.ACTION) == "Ko Po land"
    assert of_role(codec, example, Role.OBSERVATION).count("<search_result>") == 2
    assert of_role(codec, example, Role.PROMPT).endswith("I look. <begin_search> Ti </end_search>")
    plain = lesson_example(codec, LESSON)
    for role in (Role.REASONING, Role.ANSWER, Role.END):
        assert of_role(codec, example, role) == of_role(codec, plain, role)


def test_the_prompt_of_a_lesson_is_the_one_that_is_played(codec):
    played = codec.first_prompt(LESSON.task, LESSON.observation)
    for example in (lesson_example(codec, LESSON), choice_pair(codec, CHOICE)):
        begun = len(played)
        assert example.ids[:begun].tolist() == played
        assert (example.roles[:begun] == Role.PROMPT).all()
    text = codec.decode(lesson_example(codec, LESSON).ids.tolist())
    assert text.count("<think>") == 1 and "<think> I need the land" in text


def test_line_breaks_behind_results_are_the_environments():
    turns = tiny.subword_codec(*CHATML.marks, "<think>", "</think>", "<action>", "</action>")
    codec = Codec(turns._tokenizer, CHATML, PROMPT)
    example = lesson_example(codec, LESSON)
    assert of_role(codec, example, Role.OBSERVATION) == RESULTS
    written = of_role(codec, example, *RESPONSE_ROLES)
    assert written == TEXT.replace(RESULTS, "") + CHATML.response_end


@pytest.mark.parametrize("supervised_roles", [RESPONSE_ROLES, WORLD_MODEL])
def test_masked_and_unmasked_losses_are_those_of_transformers(codec, supervised_roles):
    torch = pytest.importorskip("torch")
    from transformers.loss.loss_utils import ForCausalLMLoss

    example = lesson_example(codec, LESSON)
    config = tiny.model_config(vocab_size=128)
    stored = vars(example) | {"id": b"l"}
    row = packed_row([stored], Dropping(0.0, supervised=supervised_roles), 0, len(example.ids))
    batch = dropped_weights({name: array[None] for name, array in row.items()}, 0.0)
    batch = {name: jnp.asarray(batch[name], kind) for name, kind in FIELDS["supervised"].items()}
    total, weight = supervised(config, tiny.params(config), batch)["loss"]
    names = ("ids", "positions", "segment_ids", "branches")
    hidden = decoder.hidden_states(config, tiny.params(config), *(batch[name] for name in names))
    logits = np.asarray(decoder.logits(config, tiny.params(config), hidden))
    targets = labels(np.asarray(batch["ids"]), np.asarray(batch["weights"]))
    theirs = ForCausalLMLoss(
        torch.tensor(logits), torch.tensor(targets).long(), config.vocab_size, ignore_index=-100
    )
    assert float(total / weight) == pytest.approx(theirs.item(), rel=1e-5)
    masked = example.roles[targets[0] == -100]
    assert set(masked) == {Role.PROMPT} | ({Role.OBSERVATION} - {*supervised_roles})
    # Position 0 is no target, and a prompt's token; all others are of a role that is trained on.
    assert weight == np.isin(example.roles, supervised_roles).sum()


def test_masked_results_have_no_gradient(codec):
    example = lesson_example(codec, LESSON)
    config = tiny.model_config(vocab_size=128)
    stored = vars(example) | {"id": b"l"}
    row = packed_row([stored], Dropping(0.0), 0, len(example.ids))
    batch = dropped_weights({name: array[None] for name, array in row.items()}, 0.0)
    batch = {name: jnp.asarray(batch[name], kind) for name, kind in FIELDS["supervised"].items()}
    seen = np.asarray(batch["roles"]) == Role.OBSERVATION

    def loss(bias):
        # Any change of a target that the environment wrote leaves the loss as it is.
        moved = jnp.where(seen, (batch["targets"] + bias) % 128, batch["targets"])
        return supervised(config, tiny.params(config), batch | {"targets": moved})["loss"][0]

    assert seen.sum() > 10 and float(jax.jit(loss)(0)) == float(jax.jit(loss)(5))


def test_a_choice_is_one_trunk_and_two_branches(codec):
    pair = choice_pair(codec, CHOICE)
    trunk = of_role(codec, pair, Role.PROMPT)
    # "So" is the first word of both, and the last of the trunk, which begins both branches.
    assert trunk.endswith("I need the land of Ko Po. So So")
    sides = [codec.decode(pair.ids[pair.sides == side].tolist()) for side in (1, 2)]
    assert sides == ["I search. <begin_search> Ko Po land </end_search>", "it is Ma Ti."]
    assert not (pair.roles == Role.END).any() and pair.branches.max() == 2
    counts = PairCounts()
    same = replace(CHOICE, rejected=CHOICE.chosen + " So")
    made = list(choice_pairs(codec, [CHOICE, same], 200, counts))
    assert len(made) == counts.pairs == 1 and counts.left_out["no_rejected"] == 1
    assert not list(choice_pairs(codec, [CHOICE], 20, counts)) and counts.left_out["too_long"] == 1


def test_files_give_the_same_texts_back(tmp_path, codec):
    plain = Lesson("p", "", "", "Ko Po lies in Ma Ti.")
    assert write_texts(tmp_path / "lessons.jsonl", [LESSON, plain]) == 2
    assert read_lessons(tmp_path / "lessons.jsonl") == [LESSON, plain]
    write_texts(tmp_path / "choices.jsonl", [CHOICE])
    assert read_choices(tmp_path / "choices.jsonl") == [CHOICE]
    source = growing_source(codec, [LESSON, plain], 20)
    assert len(source) == 1 and source.left_out == 1
    assert of_role(codec, source.examples[0], Role.REASONING) == plain.text
    with pytest.raises(DataError, match=r"none of 2 texts has at most data.max_length 5 tokens"):
        growing_source(codec, [LESSON, plain], 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": 3}, r":2: the field 'task' is a number; it must be a string"),
        ({"searches": "yes"}, r":2: the field 'searches' is a string; it must be true or false"),
        ({"chosen": " "}, r":2: the field 'chosen' is empty; delete the line"),
        ({"id": "c"}, r":2: the id 'c' occurs in line 1 already"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    import json

    file = tmp_path / "choices.jsonl"
    rows = [asdict(CHOICE), asdict(CHOICE) | {"id": "d"} | change]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        read_choices(file)


def test_a_text_that_cannot_be_encoded_is_named(codec):
    with pytest.raises(DataError, match=r"'l': the tokenizer does not know 'Zzz'"):
        lesson_example(codec, replace(LESSON, text=TEXT.replace("Ma Ti. </", "Zzz. </")))
