"""Rows that leave open what a trajectory needs are rejected, each with its reason."""

import json

import pytest
from helpers.public_rows import (
    FIRST,
    LOOK,
    OPENAI,
    RECORDED,
    VERL_FIRST,
    VERL_LATER,
    WEBSHOP,
    changed_call,
    changed_step,
    messages,
    pairs,
)

from cotjax.data.importing.importing import import_files

REJECTED = {
    "a note that looks like a task": (
        pairs("Your task is to: win.\nYour task is to: lose.", "Action: look"),
        "more than one task",
    ),
    "two kinds of tasks": (
        pairs("Task: relax. Your task is to boil water. It is cold.", "Action: look"),
        "more than one task",
    ),
    "an observation in the thought": (
        pairs(FIRST, "Thought: a\nobservation: b\nAction: look"),
        "more than one thought and one action",
    ),
    "the agent alone": ({"messages": [LOOK]}, "turn 0: user and agent do not take turns"),
    "a prompt that is a number": (
        {"prompt": 3, "response": "Action: look"},
        "prompt and response must be strings",
    ),
    "a response that is a number": (
        {"prompt": FIRST, "response": 3},
        "prompt and response must be strings",
    ),
    "a history of three": (
        {"instruction": FIRST, "output": "Action: look", "history": [["x", "y", "z"]]},
        "history must be a list",
    ),
    "a second action in the thought": (
        pairs(FIRST, "Thought: I recall Action: bad and then I do it. Action: look"),
        "more than one thought and one action",
    ),
    "a quoted action": (
        pairs(FIRST, "Thought: it reads 'Action: win'.\nAction: look"),
        "more than one thought and one action",
    ),
    "an observation in the action": (
        pairs(FIRST, "Action: look Observation: a cat"),
        "more than one thought and one action",
    ),
    "lines after the action": (
        pairs(FIRST, "Action: look\nYou see a cat."),
        "more than one thought and one action",
    ),
    "two blocks of code": (
        pairs(FIRST, "Act: bash\n```bash\nls\n```\n```bash\nrm x\n```"),
        "more than one thought and one action",
    ),
    "words before the action": (
        pairs(FIRST, "I shall look.\nAction: look"),
        "not marked as a thought",
    ),
    "a thought without an end": (pairs(FIRST, "<think>hm\nAction: look"), "no </think>"),
    "two thoughts": (
        messages(LOOK | {"content": "Thought: a\nAction: look", "reasoning_content": "b"}),
        "two thoughts",
    ),
    "a thought that is no text": (
        messages(LOOK | {"reasoning_content": ["b"]}),
        "its thought is not a string",
    ),
    "a first step that begins with Sure": (
        pairs(
            FIRST,
            "Sure, I begin by opening it: open cabinet 1",
            "You open it.\nYour task is to: find the key.",
            "Action: look",
        ),
        "step 0: the response is neither",
    ),
    "a first step that contains OK": (
        pairs(FIRST, "look. OK", f"A cat. {FIRST}", "Action: look"),
        "step 0: the response is neither",
    ),
    "a first step that is not trained on": (
        {
            "conversations": [
                {"from": "human", "value": FIRST},
                {"from": "gpt", "value": "open it", "loss": False},
                {"from": "human", "value": FIRST},
                {"from": "gpt", "value": "Action: look"},
            ]
        },
        "step 0: the response is neither",
    ),
    "a first step that is trained on": (
        pairs("Play.", "I shall try.", FIRST, "Action: look"),
        "names no task",
    ),
    "an instruction and no task": (
        pairs("Play.", "OK", "You see a cat.", "Action: look"),
        "names no task",
    ),
    "a system message in the middle": (
        messages(LOOK, {"role": "system", "content": "Be brief."}, LOOK),
        "in the middle",
    ),
    "a flag that is a word": (
        messages(LOOK | {"loss": "false"}),
        "its 'loss' must be true or false",
    ),
    "half a weight": (messages(LOOK | {"weight": 0.5}), "its 'weight' must be true or false"),
    "flags that contradict": (messages(LOOK | {"weight": 1, "train": False}), "contradict"),
    "a reward that is true": (messages(LOOK, reward=True), "its 'reward' is not a number"),
    "a score in words": (messages(LOOK, score="high"), "its 'score' is not a number"),
    "a reward beside another score": (messages(LOOK, reward=1, score=0.5), "differ"),
    "a success that is a number": (messages(LOOK, success=1), "'success' must be true or false"),
    "an environment that is no text": (
        messages(LOOK, environment=3),
        "its 'environment' is not a string",
    ),
    "an id that is no name": (messages(LOOK, id=[1]), "its 'id' is neither"),
    "a message's picture": (
        messages(LOOK | {"images": ["a.png"]}),
        "message 1: it contains images",
    ),
    "a system that is no text": (
        messages(LOOK, system=["Be brief."]),
        "its 'system' is not a string",
    ),
    "a message that is text": (
        {"messages": [FIRST, "Action: look"]},
        "message 0: a message needs 'role' and 'content'",
    ),
    "a prompt alone": ({"prompt": FIRST}, "match no known layout"),
    "a response alone": ({"response": "Action: look"}, "match no known layout"),
    "results without names, too many": (
        changed_call(
            m2={"tool_calls": OPENAI["messages"][2]["tool_calls"] * 2}, m3={"tool_call_id": None}
        ),
        "do not match the calls",
    ),
    "a thought in the thought": (
        changed_call(m5={"content": "<think>a<think>b</think>Rome."}),
        "the thought contains '<think>'",
    ),
    "an answer with tags": (
        changed_call(m5={"content": "<think>a</think>Rome</action>."}),
        "could be an action",
    ),
    "a result missing": (changed_call(m4={"role": "assistant"}), "do not match the calls"),
    "two answers": (messages(LOOK, LOOK), "turn 2: user and agent do not take turns"),
    "a system message at the end": (
        {"messages": [*VERL_FIRST["prompt"], LOOK, {"role": "system", "content": "x"}]},
        "in the middle",
    ),
    "a result that nobody asked for": (
        {"messages": [*OPENAI["messages"], OPENAI["messages"][3], OPENAI["messages"][5]]},
        "turn 5: a tool's result answers no call",
    ),
    "a result before anything": (
        {"messages": [OPENAI["messages"][3], LOOK]},
        "turn 0: a tool's result answers no call",
    ),
    "an agent that speaks first": (
        {"messages": [LOOK, *VERL_FIRST["prompt"], LOOK]},
        "turn 0: user and agent do not take turns",
    ),
    "a caption": (
        messages(LOOK | {"content": [{"type": "image", "text": "Action: look"}]}),
        "its content is not a string",
    ),
    "a result as a part": (
        messages(LOOK | {"content": [{"type": "tool_result", "text": "Action: look"}]}),
        "its content is not a string",
    ),
    "two observations": (
        messages(LOOK, *({"role": "observation", "content": "x"},) * 2, LOOK),
        "answers no call",
    ),
    "verl-agent's prompt twice": (
        {
            "messages": VERL_FIRST["prompt"]
            + [{"role": "assistant", "content": VERL_FIRST["response"]}]
            + VERL_FIRST["prompt"]
            + [{"role": "assistant", "content": VERL_FIRST["response"]}]
        },
        "contains '<think>'",
    ),
    "pictures": (messages(LOOK, images=["a.png"]), "images"),
    "a preference": (
        pairs(FIRST, "Action: look", chosen={"from": "gpt", "value": "x"}, rejected={}),
        "a preferred and a rejected",
    ),
    "two layouts": (
        {"prompt": FIRST, "response": "Action: look", **messages(LOOK)},
        "match two layouts",
    ),
    "two responses": (
        {"prompt": FIRST, "response": "Action: look", "output": "Action: wait"},
        "more than one of response",
    ),
    "a history that is text": (
        {"instruction": FIRST, "output": "Action: look", "history": "x"},
        "history must be a list",
    ),
    "a history of one": (
        {"instruction": FIRST, "output": "Action: look", "history": [["x"]]},
        "history must be a list",
    ),
    "text next to a call": (
        changed_call(m2={"content": "Let me see."}),
        "text next to the tool call",
    ),
    "arguments that are no JSON": (
        changed_call(m2={"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
        "a tool call must be JSON",
    ),
    "a call without a name": (
        changed_call(m2={"tool_calls": [{"function": {"arguments": "{}"}}]}),
        "a tool call must be JSON",
    ),
    "a result of another call": (changed_call(m3={"tool_call_id": "c9"}), "do not match the calls"),
    "a call without a result": (
        changed_call(m3={"role": "user"}, m4={"role": "user"}),
        "user and agent do not take turns",
    ),
    "a call that is not closed": (
        pairs("Do it.", '<tool_call>\n{"name": "f", "arguments": {}}'),
        "a <tool_call> is not closed",
    ),
    "text after a call": (
        pairs("Do it.", '<tool_call>{"name": "f", "arguments": {}}</tool_call> Done.'),
        "after or between",
    ),
    "an answer that reads like a call": (
        changed_call(m5={"content": '{"name": "f", "arguments": {}}'}),
        "could be an action",
    ),
    "an answer that reads like an action": (
        changed_call(m5={"content": "Action: look"}),
        "could be an action",
    ),
    "a picture in a tool's result": (
        changed_call(m3={"content": [{"type": "image_url"}]}),
        "its content is not a string",
    ),
    "a part without text": (
        changed_call(m3={"content": [{"type": "text"}]}),
        "its content is not a string",
    ),
    "a call by the user": (
        messages({"role": "user", "content": "x", "tool_calls": [{}]}),
        "not the agent's",
    ),
    "tools without a call": (
        messages({"role": "assistant", "content": "No."}, tools=[{}]),
        "the response is neither",
    ),
    "a history that is not counted right": (
        VERL_LATER
        | {
            "prompt": VERL_LATER["prompt"]
            .replace("[Observation 3", "[Observation 4")
            .replace("Action 3:", "Action 4:")
        },
        "do not match their count",
    ),
    "no steps": (RECORDED | {"steps": []}, "steps must be a list of steps"),
    "a step that is text": (
        {"steps": ["open fridge 1"], "game_id": RECORDED["game_id"]},
        "step 0: a step must be an object",
    ),
    "a step without an action": (
        changed_step(3, action=None),
        "step 3: a step needs 'observation' and 'action'",
    ),
    "a thought that is a list": (changed_step(1, thought=["a"]), "step 1: its thought is not"),
    "commands in one text": (
        changed_step(1, admissible_commands="look, wait"),
        "step 1: its admissible_commands are not a list of strings",
    ),
    "validity in words": (changed_step(1, valid="no"), "step 1: its 'valid' must be true or false"),
    "steps that are cut": (
        RECORDED | {"steps": RECORDED["steps"][:3]},
        "its 'n_steps' does not match its steps",
    ),
    "a refused action that is not marked": (
        changed_step(1, valid=True),
        "its 'invalid_actions' does not match its steps",
    ),
    "recorded steps without a task": (
        changed_step(0, observation="You are in a room."),
        "names no task",
    ),
    "recorded steps beside messages": (RECORDED | messages(LOOK), "match two layouts"),
    "a history that is cut": (
        VERL_LATER
        | {"prompt": VERL_LATER["prompt"].replace("Action 3: 'look'", "Action 3: 'look")},
        "cannot be separated",
    ),
}


@pytest.mark.parametrize("row, reason", REJECTED.values(), ids=REJECTED)
def test_what_is_not_sure_is_rejected_with_its_reason(tmp_path, row, reason):
    file = tmp_path / "public.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(WEBSHOP) + "\n")
    result = import_files([file], tmp_path / "t.jsonl")
    assert (result.kept, result.rejected) == (1, 1)
    assert reason in result.messages[0] and result.messages[0].startswith(f"{file}:1: ")
