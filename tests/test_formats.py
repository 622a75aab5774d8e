import pytest

from cotjax.formats import parse_response


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        ("<think> i look. </think><action> go to  shelf 1 </action><|im_end|>", "i look.", "go to shelf 1"),
        ("<action> look </action>", None, "look"),
        ("<think> </think> <action>look</action> and more <action>", "", "look"),
    ],
)
def test_well_formed_responses_give_thought_and_action(text, thought, action):
    response = parse_response(text, prefilled=False)
    assert (response.thought, response.action, response.problem) == (thought, action, None)


def test_a_prefilled_response_begins_inside_the_action():
    assert parse_response(" go to shelf 1 </action>", prefilled=True).action == "go to shelf 1"


@pytest.mark.parametrize(
    ("text", "prefilled", "problem"),
    [
        ("", False, "no <action>"),
        ("i look", False, "text before <think>"),
        ("<think> i look", False, "no </think>"),
        ("<think> i look </think>", False, "no <action>"),
        ("<think> a </think> b <action> look </action>", False, "text between </think> and <action>"),
        ("<action> look", False, "no </action>"),
        ("look", True, "no </action>"),
        (" </action>", True, "an empty action"),
        ("<think> look </action>", True, "a tag inside the action"),
    ],
)
def test_malformed_responses_say_why(text, prefilled, problem):
    response = parse_response(text, prefilled=prefilled)
    assert response.action is None
    assert response.problem == problem
