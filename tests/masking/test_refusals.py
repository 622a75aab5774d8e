"""What a refusal names: the message that is lost, and the characters where the texts part."""

import numpy as np
import pytest
from helpers.layouts import tokenizer

from cotjax.masking import (
    MaskError,
    Role,
    roles_from_messages,
    roles_from_segments,
    roles_from_text,
    target_weights,
)

RESPONSE = "<think>i look</think><action>look</action>"
LONG = "0123456789abcdefghijklmnopqrstuvwxyz0123456789"


def _chat(*contents):
    """Return messages of user and assistant in turns."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]


def _refusal(messages, template, **changes):
    with pytest.raises(MaskError) as refusal:
        roles_from_messages(messages, tokenizer("chatml"), chat_template=template, **changes)
    return str(refusal.value)


def test_a_dropped_response_is_missed_though_another_message_says_the_same():
    """The template writes the users' messages and the last response alone."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}<{{ m.content }}>"
        "{% endif %}{% endfor %}"
    )
    refusal = _refusal(_chat("say go", "go", "more", RESPONSE), template, trained="last")
    assert "does not render message 1" in refusal and "'go'" in refusal
    bare = template.replace("<{{", "{{").replace("}}>", "}}")
    refusal = _refusal(_chat("say go", "go", "more", RESPONSE), bare, trained="last")
    assert "does not render message 1" in refusal


def test_an_end_of_turn_is_put_behind_the_last_response_and_not_between_turns():
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    end = {"end_of_turn": "<|im_end|>"}
    _, roles = roles_from_messages(
        _chat("q", RESPONSE), tokenizer("chatml"), chat_template=template, **end
    )
    assert roles.tolist().count(Role.END) == 1
    assert "no end-of-turn token after message 1" in _refusal(
        _chat("q", RESPONSE, "r", RESPONSE), template, **end
    )


def test_the_message_behind_which_the_template_writes_what_depends_on_it_is_named():
    """The template tells each content's length, so it writes another text behind a mark."""
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.content|length > 9 %}!{% endif %};"
        "{% endfor %}"
    )
    refusal = _refusal(_chat("a question", RESPONSE, "a longer question", RESPONSE), template)
    assert "the content of message 0" in refusal
    refusal = _refusal(_chat("short", RESPONSE, "a longer question", RESPONSE), template)
    assert "the content of message 2" in refusal


def test_a_prompt_that_ends_otherwise_is_quoted_by_its_last_30_characters():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        f"{{% if add_generation_prompt %}}{LONG}{{% endif %}}"
    )
    assert f"generation prompt ends in {LONG[-30:]!r}, but" in _refusal(
        _chat("q", RESPONSE), template
    )


def test_texts_that_part_are_quoted_by_30_characters_from_there():
    """The template writes the first message otherwise once there are two."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        f"{{% if loop.first and loop.last %}}{LONG}{{% elif loop.first %}}{LONG[::-1]}{{% endif %}}"
        "\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    refusal = _refusal(_chat("q", RESPONSE), template)
    at = len("user: q")
    assert f"from character {at}: {LONG[:30]!r}, in the whole {LONG[::-1][:30]!r})" in refusal


def test_a_malformed_response_is_quoted_by_30_characters_from_its_fault():
    text = f"question\n<think>x</think>{LONG}<action>a</action>"
    with pytest.raises(MaskError) as refusal:
        roles_from_text(text, [(at, at + 1) for at in range(len(text))], [(9, len(text))])
    assert "line 2, column 17" in str(refusal.value)
    assert str(refusal.value).endswith(f": {LONG[:30]!r}")


def test_ids_outside_31_bits_and_roles_of_another_type_are_named():
    with pytest.raises(MaskError, match=r"segment 0: .* in 0\.\.2147483647, .* from -1 to 5"):
        roles_from_segments([([5, -1], Role.PROMPT)])
    with pytest.raises(MaskError, match="integers, not <U6"):
        target_weights(np.array(["action"]))
