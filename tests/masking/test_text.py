from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotjax.masking import MaskError, Role, Tags, roles_from_segments, roles_from_text

P, OBS, R, AO, A, AC, E = (
    Role.PROMPT,
    Role.OBSERVATION,
    Role.REASONING,
    Role.ACTION_OPEN,
    Role.ACTION,
    Role.ACTION_CLOSE,
    Role.END,
)
PROMPT = "you see a mug\n"
RESPONSE = "<think>take it</think><action>take mug</action><|end|>"
TEXT = PROMPT + RESPONSE


def spans_of(text, pieces):
    """Offsets of `pieces`, found one behind another."""
    offsets, at = [], 0
    for piece in pieces:
        at = text.index(piece, at)
        offsets.append((at, at + len(piece)))
        at += len(piece)
    return offsets


def roles_of(pieces, text=TEXT, **changes):
    options = {"responses": [(len(PROMPT), len(text))], "ends": ("<|end|>",)} | changes
    return [Role(role) for role in roles_from_text(text, spans_of(text, pieces), **options)]


def test_roles_of_tokens_that_keep_to_the_edges():
    pieces = [
        "you see",
        " a mug\n",
        "<think>",
        "take it",
        "</think>",
        "<action>",
        "take",
        " mug",
        "</action>",
        "<|end|>",
    ]
    assert roles_of(pieces) == [P, P, R, R, R, AO, A, A, AC, E]


def test_observations_have_their_own_role():
    pieces = ["you", " see a mug", "\n", "<action>"]
    assert roles_of(pieces, observations=[(3, 13)]) == [P, OBS, P, AO]


@pytest.mark.parametrize(
    ("straddler", "role"),
    [
        (
            "\n<",
            P,
        ),  # the end of the prompt and the first character of the response: never trained on
        ("it</", R),
        ("k><act", AO),  # the last of the reasoning and the first of the switch
        (
            "n>take",
            A,
        ),  # the tag's last character and the action's first: it tells part of the action
        ("mug</act", A),
        ("n><|end", AC),
    ],
)
def test_a_token_across_an_edge_takes_the_first_role_of_the_documented_order(straddler, role):
    at = TEXT.rindex(straddler) if straddler == "n><|end" else TEXT.index(straddler)
    (found,) = roles_from_text(
        TEXT, [(at, at + len(straddler))], [(len(PROMPT), len(TEXT))], ends=("<|end|>",)
    )
    assert Role(found) == role


@given(st.lists(st.integers(1, len(TEXT) - 1), unique=True))
def test_however_the_text_is_cut_every_token_has_one_role_and_the_rule_decides_it(cuts):
    order = [P, OBS, A, AO, AC, E, R]
    whole = roles_from_text(
        TEXT, [(i, i + 1) for i in range(len(TEXT))], [(len(PROMPT), len(TEXT))], ends=("<|end|>",)
    )
    edges = [0, *sorted(cuts), len(TEXT)]
    offsets = list(pairwise(edges))
    roles = roles_from_text(TEXT, offsets, [(len(PROMPT), len(TEXT))], ends=("<|end|>",))
    assert roles.dtype == np.int8 and len(roles) == len(offsets)
    for (start, end), role in zip(offsets, roles, strict=True):
        assert role == min(whole[start:end], key=order.index)


def test_tokens_without_characters_take_the_role_of_their_place_and_one_after_the_last_is_the_end():
    text = PROMPT + RESPONSE.removesuffix("<|end|>")
    n = len(PROMPT)
    offsets = [(0, 0), (0, n), (n, n + 7), (n + 7, n + 7), (n + 7, len(text)), (0, 0)]
    roles = roles_from_text(text, offsets, [(n, len(text))])
    assert [Role(role) for role in roles] == [
        P,
        P,
        R,
        R,
        A,
        P,
    ]  # the long token holds the action, so it is no closed response
    closed = [
        *offsets[:4],
        *spans_of(text, ["take it", "</think>", "<action>", "take mug", "</action>"]),
        (0, 0),
    ]
    assert Role(roles_from_text(text, closed, [(n, len(text))])[-1]) == E


def test_reasoning_may_come_without_tags_or_with_its_first_tag_in_the_prompt():
    for response in (
        "take it\n<action>take mug</action>",
        "take it</think>\n<action>take mug</action>",
    ):
        text = PROMPT + response
        roles = roles_from_text(
            text, [(i, i + 1) for i in range(len(text))], [(len(PROMPT), len(text))]
        )
        assert (
            "".join(c for c, role in zip(text, roles, strict=True) if role == R)
            == response[: response.index("<action>")]
        )


def test_other_tags():
    tags = Tags("<r>", "</r>", "[act]", "[/act]")
    text = "q<r>t</r>[act]go[/act]"
    roles = roles_from_text(
        text,
        spans_of(text, ["q", "<r>", "t", "</r>", "[act]", "go", "[/act]"]),
        [(1, len(text))],
        tags=tags,
    )
    assert [Role(role) for role in roles] == [P, R, R, R, AO, A, AC]


@pytest.mark.parametrize(
    ("response", "problem", "place"),
    [
        ("<think>take it</think> take mug", "no <action>", "line 2, column 1 "),
        ("<action>take mug</action><action>look</action>", "a second action", "line 2, column 26 "),
        ("<think>so</think><action>take mug", "<action> is not closed", "line 2, column 18 "),
        ("<think>so <action>take mug</action>", "<think> is not closed", "line 2, column 1 "),
        ("<think>i write\n'<action>go</action>'</think>", "in a quotation", "line 3, column 2 "),
        (
            '<think>so</think><action>say "<action>"</action>',
            "in a quotation",
            "line 2, column 31 ",
        ),
        ("well <think>so</think><action>go</action>", "text before <think>", "line 2, column 1 "),
        (
            "<think>i write (`<action>go`)</think><action>go</action>",
            "in a quotation",
            "line 2, column 18 ",
        ),
        ("i write '<think>so</think>'<action>go</action>", "in a quotation", "line 2, column 10 "),
        ('<action>say "</action> "', "text after the action", "line 2, column 24 "),
        (
            "<think>so</think>then<action>go</action>",
            "text between </think> and <action>",
            "line 2, column 18 ",
        ),
        ("<action>go</action> and wait", "text after the action", "line 2, column 21 "),
        ("<action>go</action><think>so</think>", "not in the order", "line 2, column 1 "),
        (
            "<think>a</think><think>b</think><action>go</action>",
            "a second <think>",
            "line 2, column 17 ",
        ),
        ("<action> </action>", "the action is empty", "line 2, column 1 "),
        ("</action>go<action>", "not in the order", "line 2, column 1 "),
    ],
)
def test_what_is_no_response_is_named_with_its_place(response, problem, place):
    text = PROMPT + response
    with pytest.raises(MaskError) as error:
        roles_from_text(text, [(0, 1)], [(len(PROMPT), len(text))], name="episode 12")
    assert (
        "episode 12" in str(error.value)
        and problem in str(error.value)
        and place in str(error.value)
    )


@pytest.mark.parametrize(
    "response",
    [
        '<think>the label reads "mug"</think><action>take mug</action>',
        '<think>so</think><action>say "hello"</action>',
        "<think>so</think><action>echo `date`</action>",
        "<think>run `ls`</think><action>go</action>",
        "<think>it is the dogs’</think><action>go</action>",
        "<think>I said “go”</think><action>go</action>",
        '<think>so</think><action>{"text": "<b>bold</b>"}</action>',
        'it says "mug"<action>say "mug"</action>',
        "the dogs'<action>take the dogs' bowl</action>",
        'an open quote: "<action>go</action>',
        '<think>i type "</think><action>say "x"</action>',
    ],
)
def test_a_quotation_mark_before_a_tag_is_none_unless_it_opens_there_and_closes_behind(response):
    text = PROMPT + response
    roles = roles_from_text(
        text, [(i, i + 1) for i in range(len(text))], [(len(PROMPT), len(text))]
    )
    action = "".join(c for c, role in zip(text, roles, strict=True) if role == A)
    assert f"<action>{action}</action>" in response and "action" not in action


def test_only_the_first_empty_token_behind_a_response_is_its_end():
    text = PROMPT + RESPONSE.removesuffix("<|end|>")
    pieces = ["<think>", "take it", "</think>", "<action>", "take mug", "</action>"]
    offsets = [(0, len(PROMPT)), *spans_of(text, pieces), (0, 0), (0, 0)]
    roles = roles_from_text(text, offsets, [(len(PROMPT), len(text))])
    assert [Role(role) for role in roles[-3:]] == [AC, E, P]


def test_a_span_outside_the_text_is_refused():
    with pytest.raises(MaskError, match=r"\(14, 99\)"):
        roles_from_text(PROMPT, [(0, 1)], [(14, 99)])


def test_segments_are_joined_as_they_are():
    ids, roles = roles_from_segments([([5, 6], P), ([7], AO), ([8, 9], A)])
    assert ids.tolist() == [5, 6, 7, 8, 9] and roles.tolist() == [P, P, AO, A, A]
    assert ids.dtype == np.int32 and roles.dtype == np.int8
    for wrong in (
        [([1], 9)],
        [([1], "x")],
        [([-1], P)],
        [([1 << 40], P)],
        [([1.5], P)],
        [5],
        [([1], [2])],
    ):
        with pytest.raises(MaskError, match="segment 0"):
            roles_from_segments(wrong)
