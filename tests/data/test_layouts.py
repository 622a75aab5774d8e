"""Rows of public data sets are imported completely, or rejected with their reason."""

import copy
import json
import re

import pytest
from helpers import tiny
from helpers.public_rows import (
    EPISODES,
    FACTORY,
    FIRST,
    FOLDER,
    HERMES,
    LOOK,
    OPENAI,
    OS,
    QWEN,
    RECORDED,
    VERL_FIRST,
    VERL_LATER,
    WEATHER,
    WEBSHOP,
    changed_call,
    changed_step,
    messages,
    pairs,
    row,
)

from cotjax.cli import data as cli_data
from cotjax.data.check import check
from cotjax.data.importing.facts import facts_of
from cotjax.data.importing.importing import import_files
from cotjax.data.importing.layouts import LAYOUTS, episode_of
from cotjax.data.importing.steps import IMPORTED_BEFORE
from cotjax.data.importing.tool_calls import is_call
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.trajectories import read_trajectories


@pytest.mark.parametrize("name", EPISODES)
def test_a_public_row_comes_over_whole(tmp_path, name):
    layout, task, steps = EPISODES[name]
    result = import_files([FOLDER / f"{name}.json"], tmp_path / "t.jsonl")
    (imported,) = read_trajectories(tmp_path / "t.jsonl")
    assert result.layouts == {layout: 1} and imported.task == task
    assert [(step.observation, step.thought, step.action) for step in imported.steps] == steps
    assert all(
        step.provenance == (IMPORTED_BEFORE if step.thought else None) for step in imported.steps
    )
    assert check(tmp_path / "t.jsonl").bad == 0


def _texts(value, path=()):
    """(path, text) of every text in a row's turns."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, str) and key not in (
            "from",
            "role",
            "id",
            "type",
            "tool_call_id",
            "tools",
            "system",
            "name",
            "item_id",
            "category",
            "game_id",
            "split",
            "source",
            "task_type",
        ):
            yield (*path, key), inner
        elif isinstance(inner, dict | list) and key != "tools":
            yield from _texts(inner, (*path, key))


def _with(changed, path, text):
    whole = copy.deepcopy(changed)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = text
    return whole


@pytest.mark.parametrize("name", EPISODES)
def test_no_word_of_a_turn_is_lost(name):
    """A word put anywhere in a row's turns is in the episode, or the row is rejected."""
    whole, kept = row(name), 0
    for path, text in _texts(whole):
        if path[:2] == ("conversations", 1) and name not in ("hermes", "llamafactory_sharegpt"):
            continue  # the agent acknowledges the instruction
        for place in re.finditer(r"\b", text):
            if name.startswith("verl") and not re.search(
                r"(?:you took|observation is|task is to): ", text[: place.start()]
            ):
                continue  # verl-agent's own words, around what they introduce
            if name.startswith("verl") and "it's your turn" in text[: place.start() + 15]:
                break
            try:
                episode, _, _ = episode_of(
                    _with(whole, path, f"{text[: place.start()]} wombat {text[place.start() :]}")
                )
            except Unmapped:
                continue
            kept += 1
            assert "wombat" in repr([episode.task, episode.steps, episode.instructions]), (
                path,
                text[: place.start()],
            )
    assert kept > 15


LEFT_OUT = {
    "openai_tool_calls": {"system messages": 1, "lists of tools": 1},
    "llamafactory_sharegpt": {"system messages": 1, "lists of tools": 1},
    "llamafactory_alpaca": {"system messages": 1},
    "webshop": {"instructions that the agent acknowledges": 1},
    "verl_agent_later": {"the prompt's description of the response format": 1},
    "hermes": {"system messages": 1, "lists of tools": 1, "the field 'category'": 1},
    "qwen_tool_call": {},
    "recorded_steps": {"the field 'source'": 1, "what ALFWorld does not show in play": 1},
    "wordle": {},
}


@pytest.mark.parametrize("name, left_out", LEFT_OUT.items(), ids=LEFT_OUT)
def test_what_a_trajectory_has_no_place_for_is_counted(tmp_path, name, left_out):
    assert import_files([FOLDER / f"{name}.json"], tmp_path / "t.jsonl").left_out == left_out


def test_fields_that_no_layout_has_are_counted(tmp_path):
    messages = [
        {"role": "user", "content": FIRST, "mood": "good"},
        LOOK | {"refusal": None},
        {"role": "user", "content": "A cat."},
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"messages": messages, "context": "A note.", "notes": ""}]))
    assert import_files([file], tmp_path / "t.jsonl").left_out == {
        "observations after the last action": 1,
        "the field 'context'": 1,
        "the field 'mood' of messages": 1,
    }
    file.write_text(
        json.dumps([{"messages": messages[:2]} | {f"x{number}": 1 for number in range(300)}])
    )
    result = import_files([file], tmp_path / "t.jsonl").left_out
    assert len(result) == 101 and sum(result.values()) == 301


def test_instructions_can_begin_the_first_observation(tmp_path):
    result = import_files(
        [FOLDER / "weather.json", FOLDER / "openai_tool_calls.json"],
        tmp_path / "t.jsonl",
        instructions=True,
    )
    weather, openai = read_trajectories(tmp_path / "t.jsonl")
    rules = WEATHER["conversations"][0]["value"]
    assert weather.steps[0].observation == f"{rules}\n\nNow new trial starts.\nGive me one action."
    assert (
        openai.steps[0].observation
        == f"You are a helpful assistant.\n\n{json.dumps(OPENAI['tools'])}"
    )
    assert weather.task == "What is the highest temperature here today?" and not result.left_out


def test_environments_and_trained_steps_of_public_rows(tmp_path):
    file = tmp_path / "public.jsonl"
    rows = [WEATHER, OS, VERL_FIRST, VERL_LATER, OPENAI]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_files([file], tmp_path / "t.jsonl")
    imported = list(read_trajectories(tmp_path / "t.jsonl"))
    assert [one.environment for one in imported] == [
        "weather",
        "os",
        "alfworld",
        "alfworld",
        "unknown",
    ]
    assert [step.trained for step in imported[3].steps] == [False, False, True], (
        "past steps are trained on in rows of their own"
    )
    assert imported[3].steps[2].admissible_commands == (
        "close fridge 1",
        "cool bread 1 with fridge 1",
    )
    assert imported[2].reward == 0.0 and imported[2].steps[0].admissible_commands == (
        "go to fridge 1",
        "look",
    )


def test_recorded_steps_are_those_of_the_game_in_play(tmp_path):
    """Commands, validity and game come over; what the environment does not show is left out."""
    import_files([FOLDER / "recorded_steps.json"], tmp_path / "t.jsonl")
    (imported,) = read_trajectories(tmp_path / "t.jsonl")
    assert [step.trained for step in imported.steps] == [True, False, True, True]
    for step, recorded in zip(imported.steps, RECORDED["steps"], strict=True):
        shown = [name for name in recorded["admissible_commands"] if name != "help"]
        assert step.admissible_commands == tuple(shown)
    assert (imported.game, imported.task_type, imported.split) == (
        RECORDED["game_id"],
        "pick_heat_then_place_in_recep",
        "train",
    )
    assert imported.success is None, "the row does not say"


def test_flags_of_a_recorded_step_and_its_validity_both_leave_it_out():
    trained = [
        episode_of(changed_step(0, **flags))[0].steps[0].trained
        for flags in ({}, {"valid": None}, {"loss": False}, {"valid": True, "loss": False})
    ]
    assert trained == [True, True, False, False]


def test_tool_calls_are_read_back_from_their_action():
    called = episode_of(OPENAI)[0].steps[0].action
    functions = [call["function"] for call in OPENAI["messages"][2]["tool_calls"]]
    assert json.loads(called) == [
        {"name": each["name"], "arguments": json.loads(each["arguments"])} for each in functions
    ]
    assert json.loads(episode_of(HERMES)[0].steps[0].action) == {
        "name": "get_weather",
        "arguments": {"city": "Oslo"},
    }
    legacy = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "Do it."},
            legacy,
            {"role": "function", "name": "f", "content": "done"},
            legacy,
        ]
    }
    assert [step.action for step in episode_of(row)[0].steps] == [
        '{"name": "f", "arguments": {}}'
    ] * 2
    single_quoted = HERMES | {"conversations": copy.deepcopy(HERMES["conversations"])}
    single_quoted["conversations"][2]["value"] = (
        "<tool_call>\n{'name': 'f', 'arguments': {'on': True}}\n</tool_call>"
    )
    assert (
        episode_of(single_quoted)[0].steps[0].action == '{"name": "f", "arguments": {"on": true}}'
    )
    at_once = copy.deepcopy(HERMES)
    at_once["conversations"][2]["value"] = (
        '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    )
    assert [call["name"] for call in json.loads(episode_of(at_once)[0].steps[0].action)] == [
        "f",
        "g",
    ]
    assert (
        is_call(called)
        and not is_call("Rome.")
        and not is_call('{"name": "f"}')
        and not is_call("[]")
    )


def _one(first=FIRST, response="Thought: hm\nAction: look", **more):
    episode, _, _ = episode_of(pairs(first, response, **more))
    return episode.task, episode.steps[0]


@pytest.mark.parametrize(
    ("first", "task", "observation"),
    [
        (
            "Your task is to heat the water to 37.5 degrees. You are in a lab.",
            "heat the water to 37.5 degrees",
            "You are in a lab.",
        ),
        (
            "Your task is to find Dr. Wu, i.e. the owner. You are here.",
            "find Dr. Wu, i.e. the owner",
            "You are here.",
        ),
        (
            "Your task is to find substance B. First look. You see it.",
            "find substance B. First look",
            "You see it.",
        ),
        (
            "Your goal is to answer: who was first? You see a book.",
            "answer: who was first?",
            "You see a book.",
        ),
        (
            "You are in a room. Your task is to: win.\nThe sign says Goal: lose.",
            "win",
            "You are in a room.\nThe sign says Goal: lose.",
        ),
        (
            "Your task is to: win.\nA note. It reads: 'Your task is to: lose'",
            "win",
            "A note. It reads: 'Your task is to: lose'",
        ),
        (
            "Goal:\ncraft a stick...\n\n  You hold:\n    wood",
            "craft a stick..",
            "  You hold:\n    wood",
        ),
        (
            "Your goal is to help. Be kind.\nYour task is to: win.\nYou see a cat.",
            "win",
            "Your goal is to help. Be kind.\nYou see a cat.",
        ),
        (
            "Play.\n\nnow, my problem is:\n\ncount files.\nAnd dirs.",
            "count files.\nAnd dirs",
            "Play.",
        ),
        (
            "You should perform actions to accomplish the goal: sum B. Give me one action.",
            "sum B",
            "Give me one action.",
        ),
        ("Question: who? and why?\nYou see a book.", "who? and why?", "You see a book."),
        ("Task: look.\nTask: look\nA cat.", "look", "Task: look\nA cat."),
    ],
)
def test_a_task_is_read_where_it_is_named_and_whole(first, task, observation):
    imported, step = _one(first)
    assert (imported, step.observation) == (task, observation)


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("search[red, blue], look", ["search[red, blue]", "look"]),
        ("put(a, (b, c)),look", ["put(a, (b, c))", "look"]),
        ('["go  north", "say a, b"]', ["go  north", "say a, b"]),
        ("search[red, blue", None),
        ("red], look", None),
        ("[1, 2]", None),
        ("[what", None),
    ],
)
def test_available_actions_are_told_apart_or_stay_in_the_observation(line, commands):
    _, step = _one(f"{FIRST}\nAVAILABLE ACTIONS: {line}")
    assert step.admissible_commands == tuple(commands or ())
    assert step.observation == "You are in a room." + (
        "" if commands else f"\nAVAILABLE ACTIONS: {line}"
    )


@pytest.mark.parametrize(
    ("response", "thought", "action"),
    [
        ("Action: say  two   spaces", None, "say  two   spaces"),
        ("<think> a </think><action> say  two   spaces </action>", "a", "say  two   spaces"),
        ("Thought: a\n\nb\nAction: look", "a\n\nb", "look"),
        ("thought: my next action: none\naction: look", "my next action: none", "look"),
        ("<think>a</think>\nAction: look", "a", "look"),
        ('Thought: a\nAction: get\nAction Input: {"x":  1}', "a", 'get\nAction Input: {"x":  1}'),
        ('Action: run ["Action": 1]', None, 'run ["Action": 1]'),
    ],
)
def test_a_response_keeps_its_text(response, thought, action):
    _, step = _one(response=response)
    assert (step.thought, step.action) == (thought, action)


def test_results_come_in_the_order_of_the_calls_or_as_they_stand():
    unnamed = changed_call(m3={"tool_call_id": None}, m4={"tool_call_id": None})
    assert [episode_of(row)[0].steps[1].observation for row in (OPENAI, unnamed)] == [
        '{"celsius": 24}\n{"celsius": 31.5}',
        '{"celsius": 31.5}\n{"celsius": 24}',
    ]
    together = copy.deepcopy(OPENAI)
    del together["messages"][3]
    together["messages"][3]["tool_call_id"] = None
    assert episode_of(together)[0].steps[1].observation == '{"celsius": 24}', (
        "one message may hold all results"
    )


def test_an_agent_that_calls_tools_may_answer_ok():
    told = copy.deepcopy(OPENAI)
    told["messages"][2:2] = [
        {"role": "assistant", "content": "OK."},
        {"role": "user", "content": "Your task is to: compare them."},
    ]
    steps = [[step.action for step in episode_of(row)[0].steps] for row in (OPENAI, told)]
    assert steps[1] == ["OK.", *steps[0]]


def test_a_thought_in_a_field_of_its_own_is_kept():
    for field in ("reasoning_content", "reasoning", "thinking"):
        answer = {
            "role": "assistant",
            field: "in there?",
            "content": "<action>open drawer 1</action>",
        }
        episode, _, _ = episode_of({"messages": [{"role": "user", "content": FIRST}, answer]})
        assert [(step.thought, step.action) for step in episode.steps] == [
            ("in there?", "open drawer 1")
        ]


@pytest.mark.parametrize("special", [True, False], ids=["with control tokens", "without"])
def test_a_verl_prompt_is_read_as_the_model_saw_it(special):
    open_, close = ("<|im_start|>", "<|im_end|>\n") if special else ("", "\n")
    system = f"{open_}system\nYou are Qwen.{close}"
    seen = f"{system}{open_}user\n{VERL_LATER['prompt']}{close}{open_}assistant\n"
    dumped, layout, environment = episode_of(
        {"input": seen, "output": VERL_LATER["response"], "score": 1.0, "step": 3}
    )
    assert (layout, environment, dumped.task) == ("verl-agent", "alfworld", "cool some bread")
    assert dumped.steps == episode_of(VERL_LATER)[0].steps and dumped.instructions == [
        ("system messages", "You are Qwen.")
    ]


def test_a_verl_step_may_be_untrained():
    system, told = {"role": "system", "content": "You are Qwen."}, VERL_FIRST["prompt"][0]
    row = {
        "messages": [
            system,
            told,
            {"role": "assistant", "content": VERL_FIRST["response"], "loss": False},
        ]
    }
    episode, layout, _ = episode_of(row)
    assert layout == "verl-agent" and [step.trained for step in episode.steps] == [False]


@pytest.mark.parametrize("folder", ["", "train/", "json_2.1.1/train/", "data\\json_2.1.1\\train\\"])
def test_a_game_is_named_by_its_last_two_folders(folder):
    row = messages(
        LOOK,
        gamefile=f"{folder}pick_and_place_simple-Plate-None-Fridge-1/trial_T1/game.tw-pddl",
        task_type="other",
    )
    facts = facts_of(row, None, {"environment": "unknown", "split": "train"})
    assert (facts["task_type"], facts["game"]) == (
        "pick_and_place_simple",
        "pick_and_place_simple-Plate-None-Fridge-1/trial_T1",
    )


def test_flags_say_what_is_trained_on():
    for name in ("loss", "weight", "train", "trained"):
        flags = [{name: value} for value in (False, 0, True, 1, 1.0, None)]
        turns = [
            turn
            for flag in flags
            for turn in (
                {"role": "user", "content": FIRST},
                {"role": "assistant", "content": "Action: look"} | flag,
            )
        ]
        episode, _, _ = episode_of({"messages": turns})
        assert [step.trained for step in episode.steps] == [False] * 2 + [True] * 4


def test_a_number_in_quotes_is_a_number():
    facts = facts_of(
        messages(LOOK, score="0.5"), None, {"environment": "unknown", "split": "train"}
    )
    assert (facts["reward"], facts["success"], facts["environment"]) == (0.5, None, "unknown")


def test_a_layout_that_is_named_is_read_so():
    row = {
        "prompt": FIRST,
        "response": "Action: look",
        **messages(LOOK | {"content": "Action: wait"}),
    }
    assert episode_of(row, "messages")[0].steps[0].action == "wait"
    assert episode_of(row, "prompt-response")[0].steps[0].action == "look"
    assert [episode_of(FACTORY, name)[1] for name in ("sharegpt", "agentgym", "eto", "auto")] == [
        "sharegpt",
        "agentgym",
        "eto",
        "sharegpt",
    ]
    assert episode_of(QWEN, "messages")[1] == "messages"
    with pytest.raises(Unmapped, match="the prompt is not verl-agent's"):
        episode_of(QWEN, "verl-agent")
    assert ("auto", *LAYOUTS) == cli_data.LAYOUTS


def test_imported_text_is_encoded_as_it_is(tmp_path):
    """The words of an imported action are those of the file, down to its spaces."""
    file = tmp_path / "public.json"
    file.write_text(json.dumps([WEBSHOP]))
    import_files([file], tmp_path / "t.jsonl")
    (imported,) = read_trajectories(tmp_path / "t.jsonl")
    assert imported.steps[0].action in WEBSHOP["conversations"][3]["value"]
    assert tiny.word_codec(tmp_path / "tokenizer", [imported.steps[0].action]).encodable(
        imported.steps[0].action
    )
