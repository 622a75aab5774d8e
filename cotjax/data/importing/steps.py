"""Turns -> an episode: the task, and what the agent saw, thought and did at each step."""

from __future__ import annotations

import re

from cotjax.data.importing.responses import acts, split_response
from cotjax.data.importing.tasks import names_task, split_commands, split_task
from cotjax.data.importing.turns import Episode, Turn, Unmapped

IMPORTED_BEFORE = "imported, before the action"

INSTRUCTION = "instructions that the agent says it has understood"

_OBSERVATION = re.compile(r"^\s*Observation[ \t]*:[ \t]*", re.I)
# What agents of public sets answer to the instruction, end to end. Anything else may be a step.
_OK = re.compile(
    r"""\s*(?:
    (?:ok(?:ay)?|sure|understood|got\ it)[.!]?
    |(?:ok(?:ay)?[.,!]?\s+)?I(?:['’]ll|\ will)\ follow\ your\ instructions(?:\ and\ try\ my\ best[^\n:;]{0,40})?[.!]?
    |(?:ok(?:ay)?[.,!]?\s+)?I(?:['’]ve|\ have)?\ underst(?:and|ood)
        (?:\ (?:the|your)\ (?:task|rules?|instructions?))?(?:,\ start\ please)?[.!]?
    )\s*""",
    re.I | re.X,
)


def as_episode(turns: list[Turn]) -> Episode:
    """Return the episode that turns make. Raises Unmapped."""
    systems = next(
        (number for number, turn in enumerate(turns) if turn.who != "system"), len(turns)
    )
    instructions = [("system messages", turn.text) for turn in turns[:systems]]
    turns = turns[systems:]
    if any(turn.who == "system" for turn in turns):
        raise Unmapped("a system message stands in the middle of the conversation")
    last = max((number for number, turn in enumerate(turns) if turn.who == "agent"), default=-1)
    if last < 0:
        raise Unmapped("the agent never speaks")
    left_out = ["observations after the last action"] * (last + 1 < len(turns))
    tools = any(turn.call is not None for turn in turns)
    exchanges = _exchanges(turns[: last + 1], tools)
    first = exchanges[0][0]
    if not tools and len(exchanges) > 1 and _acknowledges(exchanges[0][1], first, exchanges[1][0]):
        exchanges = exchanges[1:]
        if names_task(exchanges[0][0]):
            instructions.append((INSTRUCTION, first))
            first = exchanges[0][0]
        else:  # the instruction names the task, and may show the agent more: both are the first observation
            first = f"{first.rstrip()}\n{exchanges[0][0]}"
    task, first = split_task(first, tools)
    steps = []
    for number, (text, turn) in enumerate(exchanges):
        observation, commands = split_commands(text if number else first)
        thought, action = split_response(turn, f"step {number}", tools)
        steps.append(
            {
                "observation": _OBSERVATION.sub("", observation, count=1).strip("\n").rstrip(),
                "thought": thought,
                "action": action,
                "provenance": IMPORTED_BEFORE if thought is not None else None,
                "admissible_commands": commands,
                "trained": turn.trained,
            }
        )
    return Episode(task, steps, instructions, left_out)


def _exchanges(turns: list[Turn], tools: bool) -> list[tuple[str, Turn]]:
    """(what the agent is told, what it answers), one a step. Raises Unmapped."""
    made: list[tuple[str, Turn]] = []
    told: list[Turn] = []
    for number, turn in enumerate(turns):
        if turn.who != "agent":
            told.append(turn)
            continue
        before = made[-1][1] if made else None
        if (
            not told
            or {other.who for other in told} == {"user", "result"}
            or (len(told) > 1 and told[0].who == "user")
        ):
            raise Unmapped(
                "user and agent do not take turns",
                f"turn {number if not told else number - len(told) + 1}",
            )
        if before is not None and before.call is not None:
            told = _answers(told, before, f"turn {number}")
        elif told[0].who == "result" and (before is None or tools or len(told) > 1):
            raise Unmapped("a tool's result answers no call", f"turn {number - len(told)}")
        made.append(("\n".join(other.text for other in told), turn))
        told = []
    return made


def _answers(results: list[Turn], caller: Turn, where: str) -> list[Turn]:
    """The results of a message's calls, in the order of the calls."""
    if results[0].who != "result":
        raise Unmapped("a tool call has no result", where)
    found = [name for result in results for name in result.ids]
    if None not in found and None not in caller.ids and len(found) == len(results) and caller.ids:
        if sorted(found) != sorted(caller.ids):
            raise Unmapped("the tools' results are not those of the calls before", where)
        return sorted(results, key=lambda result: caller.ids.index(result.ids[0]))
    if len(results) not in (1, len(caller.ids)):
        raise Unmapped("the tools' results are not those of the calls before", where)
    return results


def _acknowledges(turn: Turn, told: str, following: str) -> bool:
    """Whether the agent only says that it has understood, before the first observation."""
    if turn.thought or acts(turn.text):
        return False
    if _OK.fullmatch(turn.text):
        return names_task(following) or names_task(told)
    return not turn.trained and names_task(following) and not names_task(told)
