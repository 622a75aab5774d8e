"""How much is left to learn in the action: one row for each checkpoint of an arm.

The rows are in `<run>/arms/<arm>/information.jsonl`. They are measured on a fixed sample of the
arm's examples (`cotjax.study.information`), with the loss that the arm would have if nothing were
dropped, so that arms which differ by their intervention alone can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cotjax.diagnostics.lines import parse_line
from cotjax.masking import Role
from cotjax.runtime.files import write_atomic

FILE = "information.jsonl"
# Below this share of the loss, an intervention removes too little for its arm to differ.
LEAST_REMOVED = 0.01
_REMEDY = "delete the line"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


class Nats(_Model):
    """Negative log-likelihood of actions, in nats. Tags are not part of an action."""

    token: float = Field(description="mean of a token of the action")
    action: float = Field(description="mean of a whole action: the sum over its tokens")


class Information(_Model):
    """What one checkpoint of an arm has left to learn, and where its gradient comes from."""

    arm: str = Field(description="name of the arm")
    checkpoint: int = Field(description="updates made; 0 is the base")
    action_given_thought: Nats | None = Field(
        description="of the action after its own thought; null where no response has a thought"
    )
    action_given_prompt: Nats | None = Field(
        description="of the same actions where `<action>` follows the prompt at once, and of those "
        "written without a thought; null where there is no action"
    )
    loss_share: Mapping[str, float] = Field(
        description="role -> its share of the loss before dropping; they add to 1"
    )
    gradient_share: Mapping[str, float] = Field(
        description="role -> <g_role, g> / |g|^2, where g_role is the gradient of the role's "
        "summed loss and g their sum; they add to 1, and one that points against the others is "
        "negative"
    )
    gradient_norm: Mapping[str, float] = Field(
        description="role -> |g_role| / |g|; they do not add to 1"
    )
    removed_share: float = Field(
        description="share of the loss that this arm's intervention removes at the fraction of the "
        "next update, by its own draws; 0 where nothing is dropped"
    )
    examples: int = Field(description="examples that were measured")
    tokens: int = Field(description="supervised tokens in them, before dropping")

    @model_validator(mode="after")
    def _known_roles(self) -> Information:
        for shares in (self.loss_share, self.gradient_share, self.gradient_norm):
            if unknown := shares.keys() - Role.__members__.keys():
                raise ValueError(f"unknown role {min(unknown)!r}")
        return self


def read_information(folder: Path) -> list[Information]:
    """Return the rows of an arm's folder in order of their checkpoint; none without the file.

    Raises:
      DataError: a line is not a row; the message names it.
    """
    file = folder / FILE
    if not file.exists():
        return []
    rows: dict[int, Information] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        row = parse_line(file, number, line, Information, _REMEDY)
        rows[row.checkpoint] = row
    return [rows[checkpoint] for checkpoint in sorted(rows)]


def write_information(folder: Path, row: Information) -> None:
    """Put a row into an arm's folder, behind those of earlier checkpoints; later ones go.

    The file is replaced whole, so that a run that is killed and resumed leaves the same bytes as
    one that was not: what it had measured beyond the checkpoint it resumes from is measured again.
    """
    earlier = [one for one in read_information(folder) if one.checkpoint < row.checkpoint]
    lines = (json.dumps(one.model_dump()) + "\n" for one in (*earlier, row))
    write_atomic(folder / FILE, "".join(lines))
