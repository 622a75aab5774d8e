"""Sampled ids have the roles of the same text if well formed, and some roles in any case."""

import numpy as np
import pytest
from helpers.layouts import tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.masking import (
    MaskError,
    Role,
    Tags,
    policy_losses,
    roles_from_ids,
    roles_from_messages,
    target_weights,
    token_sum,
)

TOK = tokenizer("chatml")
ASKED = [{"role": "user", "content": "you see a desk 1."}]
PROMPT = TOK.apply_chat_template(
    ASKED, add_generation_prompt=True, tokenize=True, return_dict=False
)


def sampled(text, **options):
    ids = [*PROMPT, *TOK(text, add_special_tokens=False)["input_ids"]]
    found = roles_from_ids(ids, TOK, prompt=len(PROMPT), **options)
    assert found.ids.tolist() == ids and (found.roles[: len(PROMPT)] == Role.PROMPT).all()
    assert (found.roles[len(PROMPT) :] >= Role.REASONING).all(), (
        "all that was sampled can be trained on"
    )
    return found


def texts(found):
    runs = []
    for token, role in zip(found.ids[len(PROMPT) :], found.roles[len(PROMPT) :], strict=True):
        if runs and runs[-1][0] == role:
            runs[-1][1].append(token)
        else:
            runs.append((role, [token]))
    return [(Role(role).name, TOK.decode(run)) for role, run in runs]


@pytest.mark.parametrize("thought", ["i go.", "le café “là” 🙂 …", 'it says "mug"'])
def test_a_well_formed_sample_has_the_roles_of_the_same_message(thought):
    response = f"<think>{thought}</think><action>go to desk 1</action>"
    ids, roles = roles_from_messages([*ASKED, {"role": "assistant", "content": response}], TOK)
    found = sampled(response + "<|im_end|>")
    np.testing.assert_array_equal(found.ids, ids[: len(found.ids)])
    np.testing.assert_array_equal(found.roles, roles[: len(found.ids)])
    assert found.reason is None


def test_a_chat_is_read_where_asked():
    tags = Tags(action_open="<tool_call>", action_close="</tool_call>")
    two = sampled(
        "<think>so</think>I look.<tool_call>a</tool_call><tool_call>b</tool_call><|im_end|>",
        responses="chat",
        tags=tags,
    )
    assert two.reason is None and [text for role, text in texts(two) if role == "ACTION"] == [
        "a",
        "b",
    ]
    answer = sampled("<think>so</think>It is sunny.<|im_end|>", responses="chat", tags=tags)
    assert answer.reason is None and [text for role, text in texts(answer) if role == "ACTION"] == [
        "It is sunny."
    ]


@pytest.mark.parametrize(
    ("response", "reason", "expected"),
    [
        ("", "empty", []),
        ("<|im_end|>", "no <action>", [("END", "<|im_end|>")]),
        ("<think>i go", "cut", [("REASONING", "<think>i go")]),
        (
            "<think>i</think><action>go",
            "cut",
            [("REASONING", "<think>i</think>"), ("ACTION_OPEN", "<action>"), ("ACTION", "go")],
        ),
        (
            "<action>go</action><action>look</action><|im_end|>",
            "a second action",
            [
                ("ACTION_OPEN", "<action>"),
                ("ACTION", "go"),
                ("ACTION_CLOSE", "</action>"),
                ("ACTION_OPEN", "<action>"),
                ("ACTION", "look"),
                ("ACTION_CLOSE", "</action>"),
                ("END", "<|im_end|>"),
            ],
        ),
        (
            "go to desk 1<|im_end|>",
            "no <action>",
            [("REASONING", "go to desk 1"), ("END", "<|im_end|>")],
        ),
        (
            '<think>"<action>" comes last</think><action>go</action>',
            "in a quotation",
            [
                ("REASONING", '<think>"<action>" comes last</think>'),
                ("ACTION_OPEN", "<action>"),
                ("ACTION", "go"),
                ("ACTION_CLOSE", "</action>"),
            ],
        ),
        (
            "<action>go</action>!",
            "text after",
            [
                ("ACTION_OPEN", "<action>"),
                ("ACTION", "go"),
                ("ACTION_CLOSE", "</action>"),
                ("REASONING", "!"),
            ],
        ),
    ],
    ids=[
        "empty",
        "only its end",
        "cut thought",
        "cut action",
        "two actions",
        "no action",
        "a quoted tag",
        "text after",
    ],
)
def test_a_malformed_sample_has_roles_and_a_reason(response, reason, expected):
    ids = [
        *PROMPT,
        *(
            token
            for piece in _pieces(response)
            for token in TOK(piece, add_special_tokens=False)["input_ids"]
        ),
    ]
    found = roles_from_ids(ids, TOK, prompt=len(PROMPT))
    assert texts(found) == expected and reason in found.reason


def _pieces(text):
    """Cut at the tags, so that no token reaches across one."""
    import re

    return [piece for piece in re.split(r"(</?\w+>)", text) if piece]


def test_a_prompt_action_begins_within_its_tag():
    found = sampled("go to desk 1</action><|im_end|>", prefilled="<action>")
    assert found.reason is None and texts(found)[0] == ("ACTION", "go to desk 1")


def test_ids_without_text_were_sampled_all_the_same():
    class Silent:
        def decode(self, ids, **how):
            return TOK.decode([id for id in ids if id != silent], **how)

    silent, response = (
        TOK.convert_tokens_to_ids("[PAD]"),
        TOK("<action>go</action>", add_special_tokens=False)["input_ids"],
    )
    found = roles_from_ids(
        [*PROMPT, silent, *response, silent, silent],
        Silent(),
        prompt=len(PROMPT),
        ends=("<|im_end|>",),
    )
    assert found.reason is None
    assert [Role(role) for role in found.roles[[len(PROMPT), -2, -1]]] == [
        Role.ACTION_OPEN,
        Role.END,
        Role.REASONING,
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(TOK) - 1), max_size=40), st.sampled_from(["action", "chat"]))
def test_whatever_is_sampled_has_roles(ids, responses):
    found = roles_from_ids([*PROMPT, *ids], TOK, prompt=len(PROMPT), responses=responses)
    assert found.ids.tolist() == [*PROMPT, *ids] and len(found.roles) == len(found.ids)
    assert (found.roles[len(PROMPT) :] >= Role.REASONING).all()


def test_the_policy_loss_takes_malformed_samples_too():
    found = sampled("<action>go</action><action>look</action>")
    losses = policy_losses(
        np.full((1, len(found.ids)), -1.0), np.full((1, len(found.ids)), -1.0), np.array([-0.1])
    )
    assert token_sum(losses, target_weights(found.roles[None]))[0] == pytest.approx(
        0.1 * (len(found.ids) - len(PROMPT))
    )


@pytest.mark.parametrize(
    ("ids", "prompt"),
    [([1, 2], 3), ([1, -2], 1), ([1.5], 0), ([[1]], 0), (["x"], 0), ([1 << 40], 0), ([1], -1)],
)
def test_ids_that_cannot_be_are_refused(ids, prompt):
    with pytest.raises(MaskError, match="sample 4"):
        roles_from_ids(ids, TOK, prompt=prompt, name="sample 4")


def test_a_token_across_an_edge_is_found_behind_what_was_prefilled():
    pieces = ["so</think><action", ">go", " up</action>"]

    class Merging:
        def decode(self, ids, **how):
            return "".join(pieces[id] for id in ids)

    found = roles_from_ids([0, 1, 2], Merging(), prompt=0, prefilled="<think>", ends=("<|end|>",))
    # The second token ends the tag and begins the action, and an action's role wins.
    assert found.roles.tolist() == [Role.ACTION_OPEN, Role.ACTION, Role.ACTION]
