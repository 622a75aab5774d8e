import pytest

from cotjax.formats import parse_response


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        (
            "<think> i look. </think><action> go to  shelf 1 </action><|im_end|>",
            "i look.",
            "go to shelf 1",
        ),
        ("<action> look </action>", None, "look"),
        ("<think> </think> <action>look</action>\n", "", "look"),
    ],
)
def test_well_formed_responses_give_thought_and_action(text, thought, action):
    response = parse_response(text, prefilled=False)
    assert (response.thought, response.action, response.problem) == (thought, action, None)


def test_a_prefilled_response_begins_inside_the_action():
    assert parse_response(" go to shelf 1 </action>", prefilled=True).action == "go to shelf 1"


@pytest.mark.parametrize(
    ("text", "prefilled", "reason", "problem"),
    [
        ("", False, "no_action", "no <action>"),
        ("i look", False, "text_before", "text before <think>"),
        ("<think> i look", False, "unclosed_thought", "no </think>"),
        ("<think> i look </think>", False, "no_action", "no <action>"),
        (
            "<think> a </think> b <action> look </action>",
            False,
            "text_between",
            "text between </think> and <action>",
        ),
        ("<action> look", False, "unclosed_action", "no </action>"),
        ("look", True, "unclosed_action", "no </action>"),
        (" </action>", True, "empty_action", "an empty action"),
        ("<think> look </action>", True, "tag_in_action", "a tag inside the action"),
        ("<action> look </action> and so on", False, "text_after", "text after </action>"),
        (
            "<action> look </action><action> open fridge 1 </action>",
            False,
            "two_actions",
            "two actions",
        ),
        ("look </action><|im_end|> <action> look </action>", True, "two_actions", "two actions"),
    ],
)
def test_malformed_responses_say_why(text, prefilled, reason, problem):
    response = parse_response(text, prefilled=prefilled)
    assert response.action is None
    assert (response.reason, response.problem) == (reason, problem)


@pytest.mark.parametrize(
    ("text", "prefilled", "reason"),
    [
        ("<think> i look around and", False, "cut"),
        ("<think> a </think>", False, "cut"),
        ("<action> go to", False, "cut"),
        ("go to", True, "cut"),
        # A fault that more tokens could not fix has its own reason; a complete response is valid.
        ("i look around and", False, "text_before"),
        ("<action> look </action>", False, None),
    ],
)
def test_a_response_that_ran_into_the_token_limit_is_cut(text, prefilled, reason):
    response = parse_response(text, prefilled=prefilled, stopped=False)
    assert response.reason == reason
    assert (response.action is None) == (reason is not None)
