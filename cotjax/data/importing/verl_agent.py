"""verl-agent's rows: one a step, whose prompt holds task, history and observation in fixed words."""

from __future__ import annotations

import re
from itertools import dropwhile

from cotjax.data.importing.responses import split_response
from cotjax.data.importing.steps import IMPORTED_BEFORE
from cotjax.data.importing.tasks import split_task
from cotjax.data.importing.turns import Episode, Turn, Unmapped

# What may stand around the prompt where the row holds it as the model saw it.
_OPEN = r"\s*(?:(?:<\|im_start\|>)?system\n(?P<system>.*?)(?:<\|im_end\|>)?\s*)?(?:(?:<\|im_start\|>)?user\n)?\s*"
_CLOSE = r"\s*(?:<\|im_end\|>)?\s*(?:(?:<\|im_start\|>)?assistant\n)?\s*"
_PROMPT = re.compile(
    _OPEN + r"You are an expert [^\n]*?(?P<world>ALFRED|WebShop)[^\n.]*\.\s*"
    r"(?:Your task is to: (?P<task>[^\n]+)\n)?"
    r"(?:Prior to this step, you have already taken (?P<taken>\d+) step\(s\)\. Below are the most recent (?P<shown>\d+) "
    r"observ\w+ and the corresponding actions you took: (?P<history>.*?)\n"
    r"You are now at step \d+ and )?"
    r"[Yy]our current observation is: (?P<observation>.*?)\n"
    r"Your admissible actions of the current situation are:\s*\[(?P<commands>.*?)\]\.\s*\n"
    r"\s*Now it's your turn to take (?:an action|one action for the current step)\.(?P<format>.*?)"
    + _CLOSE,
    re.S,
)
_PAST = re.compile(
    r"\s*\[Observation (?P<number>\d+): '(?P<observation>.*?)', Action (?P=number): '(?P<action>.*?)'\]",
    re.S,
)
_COMMAND = re.compile(r"\s*'(?P<command>[^\n]*?)',?[ \t]*(?:\n|$)")
_WORLDS = {"ALFRED": "alfworld", "WebShop": "webshop"}


def is_verl_agent(turns: list[Turn]) -> bool:
    """Return whether these turns are one prompt of verl-agent's and its response."""
    return _read(turns) is not None


def as_verl_agent(turns: list[Turn]) -> tuple[Episode, str]:
    """Return the episode of one row, and its environment.

    The past steps that the prompt shows come first, without thoughts and not trained on: they are
    trained on in rows of their own. Raises Unmapped.
    """
    found = _read(turns)
    if found is None:
        raise Unmapped("the prompt is not verl-agent's")
    steps = [] if found["history"] is None else _past(found)
    observation = (
        found["observation"]
        if found["world"] == "ALFRED"
        else found["observation"].removesuffix(".")
    )
    task = found["task"]
    if task is None:
        first = steps[0]["observation"] if steps else observation
        task, first = split_task(first, tools=False)
        if steps:
            steps[0]["observation"] = first
        else:
            observation = first
    thought, action = split_response(turns[-1], "step 0", tools=False)
    provenance = IMPORTED_BEFORE if thought is not None else None
    steps.append(
        _step(
            observation,
            thought,
            action,
            provenance,
            _commands(found["commands"]),
            turns[-1].trained,
        )
    )
    instructions = [("system messages", turn.text) for turn in turns if turn.who == "system"]
    if found["system"]:
        instructions.append(("system messages", found["system"]))
    left_out = ["prompts' words on the format of the response"]
    return Episode(task.strip().removesuffix("."), steps, instructions, left_out), _WORLDS[
        found["world"]
    ]


def _read(turns: list[Turn]) -> re.Match | None:
    spoken = list(dropwhile(lambda turn: turn.who == "system", turns))
    return (
        _PROMPT.fullmatch(spoken[0].text)
        if [turn.who for turn in spoken] == ["user", "agent"]
        else None
    )


def _past(found: re.Match) -> list[dict]:
    history, steps, end = found["history"].strip(), [], 0
    while match := _PAST.match(history, end):
        steps.append(_step(match["observation"], None, match["action"], None, [], False))
        end = match.end()
        if int(match["number"]) != int(found["taken"]) - int(found["shown"]) + len(steps):
            raise Unmapped("the steps of the prompt's history are not those that it counts")
    if end != len(history) or len(steps) != int(found["shown"]):
        raise Unmapped("the prompt's history cannot be told apart for sure")
    return steps


def _commands(text: str) -> list[str]:
    """The quoted commands, one a line; none where they cannot be told apart for sure."""
    commands, end, text = [], 0, text.strip().removesuffix(",")
    while end < len(text) and (match := _COMMAND.match(text, end)):
        commands.append(match["command"])
        end = match.end()
    return commands if end == len(text) and all(command.strip() for command in commands) else []


def _step(
    observation: str,
    thought: str | None,
    action: str,
    provenance: str | None,
    commands: list[str],
    trained: bool,
) -> dict:
    return {
        "observation": observation.strip("\n").rstrip(), "thought": thought, "action": action, "provenance": provenance,
        "admissible_commands": commands, "trained": trained,
    }  # fmt: skip
