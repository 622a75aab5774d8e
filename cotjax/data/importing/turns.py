"""What an import makes of a row: turns, then an episode; or the reason why it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field


class Unmapped(Exception):
    """A row that is no trajectory. The message says why; `kind` is the same for all such rows."""

    def __init__(self, kind: str, where: str = ""):
        super().__init__(f"{where}: {kind}" if where else kind)
        self.kind = kind


@dataclass(frozen=True)
class Turn:
    """One message.

    who: "user", "agent", "result" (what a tool or an environment answers) or "system"
    text: its content; where the agent calls tools, the text beside the calls
    trained: false where the row says that it is not trained on
    thought: reasoning that the row keeps apart from the text
    call: the tool calls as one action (see `cotjax.data.importing.tool_calls`)
    ids: of its calls, or of the call that it is the result of; None where the row gives none
    """

    who: str
    text: str
    trained: bool = True
    thought: str | None = None
    call: str | None = None
    ids: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Episode:
    """A task and its steps as the schema has them.

    instructions: (what it is, its text) of what the row says before the task; prompts have no place for it
    left_out: what else of the row has no place in a trajectory
    """

    task: str
    steps: list[dict]
    instructions: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
