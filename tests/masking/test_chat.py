"""Golden tests on three chat layouts: the exact text that is trained on."""

import numpy as np
import pytest
from helpers.layouts import TEMPLATES, tokenizer

from cotjax.masking import (
    RESPONSE_ROLES,
    MaskError,
    Role,
    labels,
    roles_from_messages,
    target_weights,
)

FIRST = "<think>i need a mug, so i go to the desk.</think><action>go to desk 1</action>"
SECOND = "<think>mug 1 is here.</think><action>take mug 1 from desk 1</action>"
ONE = [
    {"role": "user", "content": "you see a mug 1 and a desk 1."},
    {"role": "assistant", "content": FIRST},
]
TWO = [
    *ONE,
    {"role": "user", "content": "you arrive at desk 1."},
    {"role": "assistant", "content": SECOND},
]
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "qwen3": "<|im_end|>"}


def trained_text(tokenizer, ids, roles, **changes):
    """What a model is trained to write: each run of supervised targets, joined by " | "."""
    weights = target_weights(roles, **changes)
    runs, run = [], []
    for position in range(len(ids) - 1):
        if weights[position]:
            run.append(ids[position + 1])
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return " | ".join(runs + ([tokenizer.decode(run)] if run else []))


def shown(layout, response):
    """The response as the layout renders it."""
    return (
        response.replace("<think>", "<think>\n").replace("</think>", "\n</think>\n\n")
        if layout == "qwen3"
        else response
    )


@pytest.mark.parametrize("layout", TEMPLATES)
def test_one_turn_trains_the_response_and_its_end_and_nothing_else(layout):
    tok = tokenizer(layout)
    ids, roles = roles_from_messages(ONE, tok)
    assert tok.decode(ids) == tok.apply_chat_template(ONE, tokenize=False)
    if (
        layout != "llama3"
    ):  # at once, its "\\n\\n" before "<" would be other tokens than behind a generation prompt
        assert ids.tolist() == tok.apply_chat_template(ONE, tokenize=True, return_dict=False), (
            "the ids are the template's own"
        )
    assert trained_text(tok, ids, roles) == shown(layout, FIRST) + END[layout]
    assert set(roles[target_weights(roles) == 0][-2:]) <= {Role.END, Role.PROMPT}


@pytest.mark.parametrize("layout", TEMPLATES)
def test_a_dropped_action_leaves_its_tag_its_close_and_the_end(layout):
    tok = tokenizer(layout)
    ids, roles = roles_from_messages(ONE, tok)
    text = trained_text(tok, ids, roles, drop_action=np.ones(roles.shape, bool))
    assert (
        text
        == shown(layout, FIRST).removesuffix("go to desk 1</action>") + " | </action>" + END[layout]
    )


@pytest.mark.parametrize("layout", ["chatml", "llama3"])
def test_all_turns_are_trained_and_observations_are_between(layout):
    tok = tokenizer(layout)
    ids, roles = roles_from_messages(TWO, tok)
    assert trained_text(tok, ids, roles) == f"{FIRST}{END[layout]} | {SECOND}{END[layout]}"
    assert tok.decode(ids[roles == Role.OBSERVATION]) == "you arrive at desk 1."
    world = trained_text(tok, ids, roles, supervised=(*RESPONSE_ROLES, Role.OBSERVATION))
    assert world == f"{FIRST}{END[layout]} | you arrive at desk 1. | {SECOND}{END[layout]}"


@pytest.mark.parametrize("layout", TEMPLATES)
def test_the_last_turn_alone(layout):
    tok = tokenizer(layout)
    ids, roles = roles_from_messages(TWO, tok, trained="last")
    assert tok.decode(ids) == tok.apply_chat_template(TWO, tokenize=False)
    assert trained_text(tok, ids, roles) == shown(layout, SECOND) + END[layout]


def test_a_template_that_strips_past_reasoning_is_refused_with_what_to_do():
    with pytest.raises(MaskError, match=r"episode 3.*message 1.*trained='last'"):
        roles_from_messages(TWO, tokenizer("qwen3"), name="episode 3")


def test_tool_results_that_share_a_turn_are_observations():
    messages = [
        ONE[0],
        {"role": "assistant", "content": FIRST},
        {"role": "tool", "content": "you arrive."},
        {"role": "tool", "content": "mug 1 is here."},
        {"role": "assistant", "content": SECOND},
    ]
    tok = tokenizer("qwen3")
    ids, roles = roles_from_messages(messages, tok)
    assert tok.decode(ids[roles == Role.OBSERVATION]) == "you arrive.mug 1 is here."
    assert (
        trained_text(tok, ids, roles)
        == f"{shown('qwen3', FIRST)}<|im_end|> | {shown('qwen3', SECOND)}<|im_end|>"
    )


@pytest.mark.parametrize("layout", TEMPLATES)
def test_stock_templates_without_generation_marks_give_the_mask_that_transformers_cannot(layout):
    """transformers' assistant mask is all zero without `{% generation %}`; ours needs no marks."""
    tok = tokenizer(layout)
    theirs = tok.apply_chat_template(
        ONE, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert not any(theirs["assistant_masks"])
    ids, roles = roles_from_messages(ONE, tok)
    ours = labels(ids, target_weights(roles))
    assert (ours != -100).sum() == np.isin(roles, RESPONSE_ROLES).sum() > 0
    first = int(np.argmax(ours != -100))
    generation_prompt = tok.apply_chat_template(
        ONE[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids[:first].tolist() == generation_prompt, (
        "the first token of the response is trained on, the generation prompt is not"
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (ONE[:1], "no message of the role 'assistant'"),
        ([*ONE[:1], {"role": "assistant", "content": "go to desk 1"}], "no <action>"),
        ([*ONE[:1], {"role": "assistant", "content": FIRST + " bye"}], "text after the action"),
        (
            [*TWO[:3], TWO[3] | {"role": "asistant"}],
            "message 3 has the role 'asistant', which is none of",
        ),
    ],
    ids=["none", "no action", "more text", "a role that is none"],
)
def test_what_cannot_be_mapped_names_the_example(messages, problem):
    with pytest.raises(MaskError, match=f"line 7.*{problem}"):
        roles_from_messages(messages, tokenizer("chatml"), name="line 7")


def test_blanks_within_an_observation_stay_and_are_observation():
    tok = tokenizer("chatml")
    ids, roles = roles_from_messages([*TWO[:2], {"role": "user", "content": "a  b"}, TWO[3]], tok)
    assert tok.decode(ids[roles == Role.OBSERVATION]) == "a  b"


def test_a_role_of_its_own_can_be_named_as_observation():
    messages = [*TWO[:2], TWO[2] | {"role": "world"}, TWO[3]]
    tok = tokenizer("chatml")
    ids, roles = roles_from_messages(messages, tok, observations=["world"])
    assert tok.decode(ids[roles == Role.OBSERVATION]) == TWO[2]["content"]


def test_a_template_that_changes_an_observation_is_named():
    tok = tokenizer("chatml")
    messages = [*ONE, {"role": "user", "content": "you arrive"}, TWO[3]]
    upper = tok.chat_template.replace(
        "m['content'] }}", "m['content'].replace('you arrive', 'YOU') }}"
    )
    with pytest.raises(MaskError, match="message 2"):
        roles_from_messages(messages, tok, chat_template=upper)


def test_a_tokenizer_that_begins_whatever_it_gets_with_a_space_is_not_given_pieces():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {chr(i): i for i in range(32, 127)} | {"▁": 127, "\n": 128, "?": 129}
    words = Tokenizer(models.BPE(letters, [], unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tok = PreTrainedTokenizerFast(
        tokenizer_object=words,
        chat_template=tokenizer("chatml").chat_template,
        eos_token="<|im_end|>",
    )
    ids, roles = roles_from_messages(ONE, tok)
    assert (
        ids.tolist()
        == tok(tok.apply_chat_template(ONE, tokenize=False), add_special_tokens=False)["input_ids"]
    )
    assert "".join(tok.convert_ids_to_tokens(ids[roles == Role.ACTION])) == "go▁to▁desk▁1"
