"""The pieces that conversations are read with: whole control tokens, and values in messages."""

import pytest

from cotjax.masking.messages import _shown, whole_tokens

TOKENS = ["<|end|>", "<|end|><|user|>"]


@pytest.mark.parametrize(
    "end, expected",
    [
        (2, 2),  # before the token
        (3, 2),  # cuts its first character off
        (8, 2),  # cuts its last character off
        (9, 2),  # behind the first token, but inside the longer one
        (17, 17),  # behind both: nothing is cut
    ],
)
def test_an_end_never_cuts_a_control_token(end, expected):
    assert whole_tokens("ab<|end|><|user|>c", end, TOKENS) == expected


def test_an_end_right_behind_a_control_token_stays():
    assert whole_tokens("ab<|end|>c", len("ab<|end|>"), TOKENS[:1]) == len("ab<|end|>")


def test_a_long_value_is_shown_by_its_first_57_characters():
    assert _shown("x" * 58) == repr("x" * 58)
    assert _shown("x" * 59) == repr("x" * 59)[:57] + "..."
