"""Messages -> an episode: the task, and the observation, thought and action of every step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from cotjax.data.importing.messages import Message
from cotjax.data.importing.responses import acts, split_response
from cotjax.data.importing.tasks import names_task, split_commands, split_task
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.trajectories import Step

IMPORTED_BEFORE = "imported, before the action"

ACKNOWLEDGED = "instructions that the agent acknowledges"

_OBSERVATION = re.compile(r"^\s*Observation[ \t]*:[ \t]*", re.I)
# How agents of public sets acknowledge the instruction. Any other answer may be a step.
_OK = re.compile(
    r"""\s*(?:
    (?:ok(?:ay)?|sure|understood|got\ it)[.!]?
    |(?:ok(?:ay)?[.,!]?\s+)?I(?:['’]ll|\ will)\ follow\ your\ instructions
        (?:\ and\ try\ my\ best[^\n:;]{0,40})?[.!]?
    |(?:ok(?:ay)?[.,!]?\s+)?I(?:['’]ve|\ have)?\ underst(?:and|ood)
        (?:\ (?:the|your)\ (?:task|rules?|instructions?))?(?:,\ start\ please)?[.!]?
    )\s*""",
    re.I | re.X,
)


@dataclass(frozen=True)
class Episode:
    """The task and steps of a row.

    instructions: (kind, text) of what the row says before the task; prompts have no place for it
    left_out: the kinds of other content that has no place in a trajectory
    """

    task: str
    steps: list[Step]
    instructions: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Exchange:
    """What the agent reads, and what it answers: one step."""

    prompt: str
    answer: Message


def imported_step(
    observation: str,
    thought: str | None,
    action: str,
    commands: Sequence[str] = (),
    trained: bool = True,
) -> Step:
    """Return a step with the provenance of an imported thought."""
    return Step(
        observation=observation.strip("\n").rstrip(),
        thought=thought,
        action=action,
        provenance=None if thought is None else IMPORTED_BEFORE,
        admissible_commands=tuple(commands),
        trained=trained,
    )


def as_episode(messages: list[Message]) -> Episode:
    """Return the episode of a conversation. Raises Unmapped."""
    instructions, messages = _without_system(messages)
    spoken = [number for number, message in enumerate(messages) if message.speaker == "agent"]
    if not spoken:
        raise Unmapped("the agent never speaks")
    left_out = []
    if spoken[-1] + 1 < len(messages):
        left_out.append("observations after the last action")
    tools = any(message.call is not None for message in messages)
    exchanges = _exchanges(messages[: spoken[-1] + 1], tools)
    if not tools and len(exchanges) > 1 and _acknowledges(exchanges[0], exchanges[1].prompt):
        first, second = exchanges[0].prompt, exchanges[1]
        if names_task(second.prompt):
            instructions.append((ACKNOWLEDGED, first))
        else:
            # The instruction names the task, and may show the agent more: it belongs to the first
            # observation.
            second = replace(second, prompt=f"{first.rstrip()}\n{second.prompt}")
        exchanges = [second, *exchanges[2:]]
    task, observation = split_task(exchanges[0].prompt, tools)
    exchanges[0] = replace(exchanges[0], prompt=observation)
    steps = [_step(exchange, number, tools) for number, exchange in enumerate(exchanges)]
    return Episode(task, steps, instructions, left_out)


def _without_system(messages: list[Message]) -> tuple[list[tuple[str, str]], list[Message]]:
    """Return (the system messages at the beginning as instructions, the other messages)."""
    count = 0
    while count < len(messages) and messages[count].speaker == "system":
        count += 1
    if any(message.speaker == "system" for message in messages[count:]):
        raise Unmapped("a system message in the middle of the conversation")
    return [("system messages", message.text) for message in messages[:count]], messages[count:]


def _step(exchange: _Exchange, number: int, tools: bool) -> Step:
    observation, commands = split_commands(exchange.prompt)
    thought, action = split_response(exchange.answer, f"step {number}", tools)
    observation = _OBSERVATION.sub("", observation, count=1)
    return imported_step(observation, thought, action, commands, exchange.answer.trained)


def _exchanges(messages: list[Message], tools: bool) -> list[_Exchange]:
    """Group the messages into exchanges. Raises Unmapped."""
    exchanges: list[_Exchange] = []
    pending: list[Message] = []
    for number, message in enumerate(messages):
        if message.speaker != "agent":
            pending.append(message)
            continue
        before = exchanges[-1].answer if exchanges else None
        speakers = {other.speaker for other in pending}
        if not pending or len(speakers) > 1 or (len(pending) > 1 and speakers == {"user"}):
            place = number - len(pending) + 1 if pending else number
            raise Unmapped("user and agent do not take turns", f"turn {place}")
        if before is not None and before.call is not None:
            pending = _in_order_of_calls(pending, before, f"turn {number}")
        elif speakers == {"result"} and (before is None or tools or len(pending) > 1):
            raise Unmapped("a tool's result answers no call", f"turn {number - len(pending)}")
        exchanges.append(_Exchange("\n".join(other.text for other in pending), message))
        pending = []
    return exchanges


def _in_order_of_calls(results: list[Message], caller: Message, where: str) -> list[Message]:
    """Return the results of a message's calls, in the order of the calls."""
    if results[0].speaker != "result":
        raise Unmapped("a tool call has no result", where)
    named = [id for result in results for id in result.ids if id is not None]
    called = [id for id in caller.ids if id is not None]
    if called and len(called) == len(caller.ids) and len(named) == len(results):
        if sorted(named) != sorted(called):
            raise Unmapped("the tools' results do not match the calls before", where)
        places = [called.index(id) for id in named]
        return [
            result for _, result in sorted(zip(places, results, strict=True), key=itemgetter(0))
        ]
    if len(results) not in (1, len(caller.ids)):
        raise Unmapped("the tools' results do not match the calls before", where)
    return results


def _acknowledges(exchange: _Exchange, following: str) -> bool:
    """Return whether the agent only acknowledges its instruction, before the first observation.

    Args:
      following: what the agent reads next.
    """
    answer, prompt = exchange.answer, exchange.prompt
    if answer.thought or acts(answer.text):
        return False
    if _OK.fullmatch(answer.text):
        return names_task(following) or names_task(prompt)
    return not answer.trained and names_task(following) and not names_task(prompt)
