"""verl-agent's rows: one per step, whose prompt states task, history and observation."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import dropwhile

from cotjax.data.importing.messages import Message
from cotjax.data.importing.responses import split_response
from cotjax.data.importing.steps import Episode, imported_step
from cotjax.data.importing.tasks import split_task
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.trajectories import Step

# Marks around the prompt where the row has it as the model saw it.
_OPEN = (
    r"\s*(?:(?:<\|im_start\|>)?system\n(?P<system>.*?)(?:<\|im_end\|>)?\s*)?"
    r"(?:(?:<\|im_start\|>)?user\n)?\s*"
)
_CLOSE = r"\s*(?:<\|im_end\|>)?\s*(?:(?:<\|im_start\|>)?assistant\n)?\s*"
_PROMPT = re.compile(
    _OPEN + r"You are an expert [^\n]*?(?P<world>ALFRED|WebShop)[^\n.]*\.\s*"
    r"(?:Your task is to: (?P<task>[^\n]+)\n)?"
    r"(?:Prior to this step, you have already taken (?P<taken>\d+) step\(s\)\. "
    r"Below are the most recent (?P<shown>\d+) "
    r"observ\w+ and the corresponding actions you took: (?P<history>.*?)\n"
    r"You are now at step \d+ and )?"
    r"[Yy]our current observation is: (?P<observation>.*?)\n"
    r"Your admissible actions of the current situation are:\s*\[(?P<commands>.*?)\]\.\s*\n"
    r"\s*Now it's your turn to take (?:an action|one action for the current step)\.(?P<format>.*?)"
    + _CLOSE,
    re.S,
)
_PAST = re.compile(
    r"\s*\[Observation (?P<number>\d+): '(?P<observation>.*?)', "
    r"Action (?P=number): '(?P<action>.*?)'\]",
    re.S,
)
_COMMAND = re.compile(r"\s*'(?P<command>[^\n]*?)',?[ \t]*(?:\n|$)")
_WORLDS = {"ALFRED": "alfworld", "WebShop": "webshop"}


def is_verl_agent(messages: list[Message]) -> bool:
    """Return whether these messages are a prompt of verl-agent's and its response."""
    return _match(messages) is not None


def as_verl_agent(messages: list[Message]) -> tuple[Episode, str]:
    """Return (the episode of one row, its environment).

    The past steps that the prompt shows come first, without thoughts and not trained on: they have
    rows of their own. Raises Unmapped.
    """
    prompt = _match(messages)
    if prompt is None:
        raise Unmapped("the prompt is not verl-agent's")
    response, observation = messages[-1], prompt["observation"]
    if prompt["world"] == "WebShop":
        observation = observation.removesuffix(".")
    thought, action = split_response(response, "step 0", tools=False)
    commands = _commands(prompt["commands"])
    steps = [] if prompt["history"] is None else _past_steps(prompt)
    steps.append(imported_step(observation, thought, action, commands, response.trained))
    task = prompt["task"]
    if task is None:
        task, first = split_task(steps[0].observation, tools=False)
        steps[0] = replace(steps[0], observation=first.strip("\n").rstrip())
    instructions = [
        ("system messages", message.text) for message in messages if message.speaker == "system"
    ]
    if prompt["system"]:
        instructions.append(("system messages", prompt["system"]))
    left_out = ["the prompt's description of the response format"]
    episode = Episode(task.strip().removesuffix("."), steps, instructions, left_out)
    return episode, _WORLDS[prompt["world"]]


def _match(messages: list[Message]) -> re.Match[str] | None:
    spoken = list(dropwhile(lambda message: message.speaker == "system", messages))
    if [message.speaker for message in spoken] != ["user", "agent"]:
        return None
    return _PROMPT.fullmatch(spoken[0].text)


def _past_steps(prompt: re.Match[str]) -> list[Step]:
    history, end = prompt["history"].strip(), 0
    before = int(prompt["taken"]) - int(prompt["shown"])
    steps: list[Step] = []
    while match := _PAST.match(history, end):
        steps.append(imported_step(match["observation"], None, match["action"], trained=False))
        end = match.end()
        if int(match["number"]) != before + len(steps):
            raise Unmapped("the steps of the prompt's history do not match their count")
    if end != len(history) or len(steps) != int(prompt["shown"]):
        raise Unmapped("the steps of the prompt's history cannot be separated")
    return steps


def _commands(text: str) -> list[str]:
    """Return the quoted commands, one a line; none where they cannot be separated."""
    commands, end, text = [], 0, text.strip().removesuffix(",")
    while end < len(text) and (match := _COMMAND.match(text, end)):
        commands.append(match["command"])
        end = match.end()
    return commands if end == len(text) and all(command.strip() for command in commands) else []
