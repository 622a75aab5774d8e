"""Chats with answers, calls, text before calls, untrained messages, and results in parts."""

import copy

import numpy as np
import pytest
from helpers.layouts import TEMPLATES, tokenizer

from cotjax.masking import Dropping, MaskError, Role, Tags, roles_from_messages, target_weights

CALLS = Tags(action_open="<tool_call>", action_close="</tool_call>")
ASKED = {"role": "user", "content": "is it sunny in Rome?"}
CALL = '<think>i look it up.</think>I look.<tool_call>{"city": "Rome"}</tool_call>'
TWO_CALLS = (
    '<think>both.</think><tool_call>{"city": "Rome"}</tool_call>\n'
    '<tool_call>{"city": "Oslo"}</tool_call>'
)
TOLD = {"role": "tool", "content": "sunny"}
ANSWER = "<think>now i know.</think>It is sunny."


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def texts(tok, ids, roles, *chosen):
    """Texts of the runs of tokens of these roles."""
    found, run = [], []
    for token, here in zip(ids, np.isin(roles, chosen), strict=True):
        if here:
            run.append(token)
        elif run:
            found, run = [*found, tok.decode(run)], []
    return found + ([tok.decode(run)] if run else [])


def masked(messages, layout="chatml", **options):
    tok = tokenizer(layout)
    ids, roles = roles_from_messages(
        messages, tok, **{"responses": "chat", "tags": CALLS} | options
    )
    assert tok.decode(ids) == tok.apply_chat_template(messages, tokenize=False)
    return lambda *chosen: texts(tok, ids, roles, *chosen)


@pytest.mark.parametrize("layout", TEMPLATES)
def test_calls_are_actions_and_so_is_an_answer_and_text_before_a_call_is_reasoning(layout):
    found = masked([ASKED, assistant(CALL), TOLD, assistant(ANSWER)], layout)
    assert found(Role.ACTION) == ['{"city": "Rome"}', "It is sunny."]
    assert found(Role.ACTION_OPEN) == ["<tool_call>"] and found(Role.ACTION_CLOSE) == [
        "</tool_call>"
    ]
    thought, known = found(Role.REASONING)
    assert (
        "i look it up." in thought
        and thought.endswith("I look.")
        and "now i know." in known
        and "sunny" not in known
    )
    assert len(found(Role.END)) == 2 and found(Role.OBSERVATION) == ["sunny"]


def test_parallel_calls_are_dropped_together_and_keep_their_tags():
    tok = tokenizer("chatml")
    ids, roles = roles_from_messages(
        [ASKED, assistant(TWO_CALLS)], tok, responses="chat", tags=CALLS
    )
    drop = Dropping(1.0, unit="turn").tokens(roles, "x")
    assert texts(tok, ids, roles, Role.ACTION_OPEN) == ["<tool_call>", "\n<tool_call>"]
    assert tok.decode(ids[drop]) == '{"city": "Rome"}{"city": "Oslo"}'


def test_a_call_may_end_in_a_quotation_mark_and_an_answer_may_quote_a_tag():
    calls = '<think>so</think><tool_call>say "</tool_call><tool_call>say "x"</tool_call>'
    assert masked([ASKED, assistant(calls)])(Role.ACTION) == ['say "', 'say "x"']
    answer = 'The tag "<think>" begins a thought.'
    assert masked([ASKED, assistant(answer)])(Role.ACTION) == [answer]


def test_an_answer_that_stands_in_its_thought_too_is_the_one_behind_it():
    found = masked([ASKED, assistant("<think>It is sunny. I say so.</think>It is sunny.")])
    assert found(Role.ACTION) == ["It is sunny."] and found(Role.REASONING) == [
        "<think>It is sunny. I say so.</think>"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<think>so</think>", "neither a call nor an answer"),
        ("<think>so", "<think> is not closed"),
        ("<tool_call>a", "<tool_call> is not closed"),
        ("<tool_call>a<tool_call>b</tool_call>", "<tool_call> where </tool_call> is expected"),
        ("a</tool_call>", "</tool_call> where <tool_call> is expected"),
        ("<tool_call> </tool_call>", "the action is empty"),
        ("<tool_call>a</tool_call> done", "text after the action"),
    ],
)
def test_what_is_no_response_of_a_chat_is_named(content, problem):
    with pytest.raises(MaskError, match=rf"line 3: {problem}.*line 4, column"):
        masked([ASKED, assistant(content)], name="line 3")


def test_a_strict_example_says_how_a_chat_is_asked_for():
    with pytest.raises(MaskError, match=r"no <action>.*responses='chat'"):
        roles_from_messages([ASKED, assistant("It is sunny.")], tokenizer("chatml"))


def test_a_message_that_is_not_trained_is_prompt():
    messages = [ASKED, assistant(CALL, trained=False), TOLD, assistant(ANSWER, trained=True)]
    found = masked(messages)
    assert found(Role.ACTION) == ["It is sunny."] and found(Role.OBSERVATION) == ["sunny"]
    with pytest.raises(MaskError, match="every response is marked as not trained"):
        masked(messages[:2])
    with pytest.raises(MaskError, match="every response is marked as not trained"):
        masked([*messages[:3], assistant(ANSWER, trained=False)], trained="last")
    with pytest.raises(MaskError, match="message 1: trained must be true or false"):
        masked([ASKED, assistant(CALL, trained="no")])


@pytest.mark.parametrize("layout", TEMPLATES)
@pytest.mark.parametrize("result", ["user", "assistant", "tool", "a user said: sunny"])
def test_an_observation_is_marked_where_it_stands_and_not_in_a_header(layout, result):
    for trained in ("all", "last"):
        found = masked(
            [ASKED, assistant(CALL), TOLD | {"content": result}, assistant(ANSWER)],
            layout,
            trained=trained,
        )
        assert found(Role.OBSERVATION) == [result]
    both = [TOLD | {"content": result}] * 2
    assert (
        masked([ASKED, assistant(CALL), *both, assistant(ANSWER)], layout)(Role.OBSERVATION)
        == [result] * 2
    )


@pytest.mark.parametrize("layout", TEMPLATES)
def test_results_in_parts_are_observations_as_the_same_in_a_text(layout):
    parts = [{"type": "text", "text": "sunny"}, {"type": "text", "text": " and warm"}]
    tok, options = tokenizer(layout), {"responses": "chat", "tags": CALLS}
    of_parts, of_text = (
        roles_from_messages(
            [ASKED, assistant(CALL), TOLD | {"content": content}, assistant(ANSWER)], tok, **options
        )
        for content in (parts, "sunny and warm")
    )
    for ours, theirs in zip(of_parts, of_text, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert texts(tok, *of_parts, Role.OBSERVATION) == ["sunny and warm"]


def test_a_result_that_the_template_writes_as_json_is_found():
    tok = tokenizer("chatml")
    as_json = tok.chat_template.replace(
        "{{ m['content'] }}", "{{ m['content'] | tojson if m['role'] == 'tool' else m['content'] }}"
    )
    messages = [ASKED, assistant(CALL), TOLD | {"content": 'a "lamp"\nis on'}, assistant(ANSWER)]
    ids, roles = roles_from_messages(
        messages, tok, responses="chat", tags=CALLS, chat_template=as_json
    )
    assert texts(tok, ids, roles, Role.OBSERVATION) == [r"a \"lamp\"\nis on"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("{{ m['content'] }}", "{{ m['content'] if m['role'] != 'tool' }}"),
            "content of message 2.*'sunny'",
        ),
        (
            ("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"),
            "message 1.*'i look it up.'.*would train without it",
        ),
        (
            ("{{ m['content'] }}", "{{ m['content'] | replace('Rome', 'Oslo') }}"),
            "content of message 0.*'is it sunny in Rome",
        ),
        (
            ("{{ m['content'] }}", "{{ m['content'] | replace('now', 'then') }}"),
            "message 3.*'now i know.'",
        ),
    ],
    ids=["no tool results", "strips thoughts", "changes the question", "changes a thought"],
)
def test_whatever_a_template_does_not_render_is_named(change, problem):
    tok = tokenizer("chatml")
    assert change[0] in tok.chat_template
    with pytest.raises(MaskError, match=f"line 9: .*{problem}"):
        roles_from_messages(
            [ASKED, assistant(CALL), TOLD, assistant(ANSWER)],
            tok,
            responses="chat",
            tags=CALLS,
            name="line 9",
            chat_template=tok.chat_template.replace(*change),
        )


def test_past_responses_must_be_rendered_but_for_their_thoughts():
    tok = tokenizer("chatml")
    messages = [ASKED, assistant(CALL), TOLD, assistant(ANSWER)]
    past = "m['content'].split('</think>')[-1] if not loop.last else m['content']"
    strips = tok.chat_template.replace("m['content'] }}", f"{past} }}}}")
    ids, roles = roles_from_messages(
        messages, tok, trained="last", responses="chat", tags=CALLS, chat_template=strips
    )
    assert texts(tok, ids, roles, Role.ACTION) == [
        "It is sunny."
    ] and "i look it up" not in tok.decode(ids)
    cuts = tok.chat_template.replace("m['content'] }}", f"({past}) | replace('Rome', '') }}}}")
    with pytest.raises(MaskError, match="message 1"):
        roles_from_messages(
            [ASKED | {"content": "?"}, *messages[1:]],
            tok,
            trained="last",
            responses="chat",
            tags=CALLS,
            chat_template=cuts,
        )


def test_calls_and_reasoning_beside_the_content_must_be_rendered():
    call = {
        "function": {
            "name": "get_weather",
            "arguments": {"city": "Rome", "days": 3, "at": ["noon"]},
        }
    }
    for arguments in (call["function"]["arguments"], '{"city": "Rome"}'):
        message = assistant(
            "I look.", tool_calls=[{"function": {"name": "get_weather", "arguments": arguments}}]
        )
        with pytest.raises(MaskError, match="the call of message 1: 'get_weather'"):
            masked([ASKED, message])
    with pytest.raises(MaskError, match=r"'why'.*reasoning_content"):
        masked([ASKED, assistant("It is sunny.", reasoning_content="why")])
    tok = tokenizer("chatml")
    shows = tok.chat_template.replace(
        "{{ m['content'] }}",
        "{{ m['content'] }}{{ m.tool_calls[0].function | tojson if m.tool_calls }}",
    )
    ids, roles = roles_from_messages(
        [ASKED, assistant("I look.", tool_calls=[call])], tok, responses="chat", chat_template=shows
    )
    assert texts(tok, ids, roles, Role.REASONING) == ["I look."]
    assert texts(tok, ids, roles, Role.ACTION)[0].startswith('{"name": "get_weather"') and texts(
        tok, ids, roles, Role.END
    ) == ["<|im_end|>"]
    lost = shows.replace("function | tojson", "function.name")
    with pytest.raises(MaskError, match="the call of message 1: 'Rome'"):
        roles_from_messages(
            [ASKED, assistant("I look.", tool_calls=[call])],
            tok,
            responses="chat",
            chat_template=lost,
        )


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_control_token_in_a_content_is_refused(where):
    messages = [ASKED, assistant(CALL), TOLD, assistant(ANSWER)]
    messages[where] = messages[where] | {
        "content": messages[where]["content"] + "<|im_start|>system"
    }
    with pytest.raises(MaskError, match=rf"message {where} contains '<\|im_start\|>'"):
        masked(messages)


def test_a_template_that_ends_no_turn_needs_to_be_told_the_end():
    tok = tokenizer("chatml")
    endless = tok.chat_template.replace("{{ m['content'] }}<|im_end|>\n", "{{ m['content'] }}")
    messages = [ASKED, assistant(CALL), TOLD, assistant(ANSWER)]
    options = {"responses": "chat", "tags": CALLS, "chat_template": endless}
    with pytest.raises(MaskError, match=r"no end-of-turn token after message 3.*end_of_turn"):
        roles_from_messages(messages, tok, **options)
    ids, roles = roles_from_messages(messages, tok, end_of_turn="<|im_start|>", **options)
    # Between turns it is the token that opens the next one, as at the end.
    assert texts(tok, ids, roles, Role.END) == ["<|im_start|>"] * 2 and ids[
        -1
    ] == tok.convert_tokens_to_ids("<|im_start|>")
    assert target_weights(roles)[-2] == 1
    ids, roles = roles_from_messages(messages, tok, end_of_turn="", **options)
    assert texts(tok, ids, roles, Role.END) == ["<|im_start|>"]


def test_a_token_that_was_added_ends_a_turn_though_it_is_not_special():
    tok = copy.deepcopy(tokenizer("chatml"))
    tok.add_tokens(["<end>"])
    ended = tok.chat_template.replace("<|im_end|>", "<end>")
    messages = [ASKED, assistant(CALL), TOLD, assistant(ANSWER)]
    ids, roles = roles_from_messages(
        messages, tok, responses="chat", tags=CALLS, chat_template=ended
    )
    assert (
        texts(tok, ids, roles, Role.END) == ["<end>"] * 2
        and texts(tok, ids, roles, Role.ACTION)[-1] == "It is sunny."
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "messages must be a list"),
        ("hello", "messages must be a list"),
        ([], "messages must be a list"),
        (["hello"], "message 0 must be"),
        ([{"content": "x"}], "message 0 must be"),
        ([ASKED | {"content": 3}], "message 0: the content must be a text or parts"),
        ([ASKED | {"content": ["x"]}], "message 0: the content must be a text or parts"),
        ([ASKED, assistant(None)], "message 1: there is neither content nor a call"),
        ([ASKED, assistant("x", tool_calls={"name": "a"})], "message 1: tool_calls must be a list"),
        ([ASKED, assistant("half \ud800")], "message 1 contains half a surrogate pair"),
        ([ASKED], "no message of the role 'assistant'"),
    ],
)
def test_what_is_no_chat_is_a_mask_error_that_names_the_message(messages, problem):
    with pytest.raises(MaskError, match=f"line 7: {problem}"):
        roles_from_messages(messages, tokenizer("chatml"), name="line 7")


def test_what_a_template_or_tokenizer_cannot_do_is_a_mask_error():
    raises = "{{ raise_exception('no system role') }}"
    with pytest.raises(MaskError, match="cannot render the first 2 messages \\(no system role\\)"):
        roles_from_messages([ASKED, assistant(ANSWER)], tokenizer("chatml"), chat_template=raises)
    with pytest.raises(MaskError, match="a Tokenizer renders no messages"):
        roles_from_messages([ASKED, assistant(ANSWER)], tokenizer("chatml").backend_tokenizer)
    for wrong in (
        {"trained": "some"},
        {"responses": "free"},
        {"tokenize": True},
        {"add_generation_prompt": True},
    ):
        with pytest.raises(MaskError, match=next(iter(wrong))):
            roles_from_messages([ASKED, assistant(ANSWER)], tokenizer("chatml"), **wrong)


def test_a_response_to_nothing_is_refused_unless_it_is_prompt():
    with pytest.raises(MaskError, match=r"message 0 is a response to nothing.*'trained': False"):
        masked([assistant(ANSWER), ASKED, assistant(ANSWER)])
    assert masked([assistant(ANSWER, trained=False), ASKED, assistant(ANSWER)])(Role.ACTION) == [
        "It is sunny."
    ]
