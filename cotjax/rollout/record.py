"""Episode records: one JSON file per episode. The models below are the schema.

docs/records.md explains every field; its tables are generated from the models
(`python -m cotjax.rollout.record_page docs/records.md`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from cotjax.errors import DataError, InternalError
from cotjax.runtime.files import write_atomic
from cotjax.runtime.members import member_name, natural_path

SCHEMA_VERSION = 4
READABLE_SCHEMAS = (SCHEMA_VERSION, 3, 2)
# The kinds of action (cotjax.rollout.elicitation explains them).
Kind = Literal["cot", "prompt", "cot_constrained", "prompt_constrained", "instructed"]
Driver = Literal[Kind, "reference"]
Ended = Literal["won", "step_limit", "length", "env_error"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DRIVERS: tuple[Driver, ...] = get_args(Driver)
T = TypeVar("T")
# A list becomes a tuple; its items stay strict.
Many = Annotated[tuple[T, ...], Field(strict=False)]
_REMEDY = "delete the file and evaluate again"
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Response(_Model):
    """What the model answered to one prompt."""

    text: str = Field(description="`ids` as text, for reading only")
    thought: str | None = Field(description="the reasoning; null where there is none")
    action: str | None = Field(description="the action; null when the response is invalid")
    valid: bool = Field(description="well-formed from end to end, with one action")
    reason: str | None = Field(description="why it is invalid: a code (below); else null")
    problem: str | None = Field(description="the same in words")
    admissible: bool | None = Field(
        description="the action is among `admissible_commands`, whether or not the response is "
        "valid; null where the environment lists none"
    )
    ids: Many[int] = Field(description="sampled after the prefix, stop sequence included")
    new_tokens: int = Field(
        description="tokens that the model wrote: the number of `ids`, but of an endpoint's model "
        "the number that the server counted"
    )
    stopped: bool = Field(
        description="false where it ran into the token limit, or `no_repeat_ngram_size` forbade "
        "every next id"
    )
    seed: int = Field(
        description="of its sampling: an integer below 2^64, from the study's seed, the game, the "
        "sample, the turn and the kind of action"
    )
    logprob: float | None = Field(
        default=None, description="sum of `logprobs`; null from a policy that reports none"
    )
    logprobs: Many[float] | None = Field(
        default=None,
        description="natural logarithm of each id's probability (6 decimals), under the model at "
        "temperature 1, over all rows of its vocabulary",
    )


class Choice(_Model):
    """The admissible action that the model finds most likely, by total and by mean."""

    action: str | None = Field(
        description="`by_total` or `by_mean`, as `elicitation.constrained_by` says; null where no "
        "action is admissible"
    )
    by_total: str | None = Field(
        description="the action of the highest `logprobs`; of equal ones the first that the "
        "environment lists"
    )
    by_mean: str | None = Field(description="the same by `logprobs` / `tokens`")
    logprobs: Many[float] = Field(
        description="of each of `admissible_commands`, in their order: natural logarithm of the "
        "probability of its tokens and of `</action>` behind them (6 decimals), under the model at "
        "temperature 1"
    )
    tokens: Many[int] = Field(description="number of those tokens, those of `</action>` included")
    prefix_ids: Many[int] = Field(
        description="between the prompt and the action: `<action>`, behind the reasoning of `cot` "
        "in `cot_constrained`"
    )
    ids: Many[int] = Field(
        description="of `action` alone: the next prompt continues with them where it is executed"
    )


class Turn(_Model):
    """One turn: what the environment said, the model's actions, and what was executed."""

    observation: str = Field(description="what the environment said")
    admissible_commands: Many[str] | None = Field(
        description="what it would accept; null where it cannot list that"
    )
    prompt_ids: Many[int] = Field(
        description="ids appended to the prompt for this turn; those of all turns so far are the "
        "whole prompt"
    )
    prompt_length: int = Field(description="tokens of that whole prompt")
    cot: Response | None = Field(description="CoT response; null where none was decoded")
    prompt: Response | None = Field(description="prompt response; null where none was decoded")
    cot_constrained: Choice | None = Field(
        default=None, description="choice after the reasoning of `cot`; null where none was made"
    )
    prompt_constrained: Choice | None = Field(
        default=None, description="choice right after the prompt; null where none was made"
    )
    instructed: Response | None = Field(
        default=None,
        description="response to the prompt with the no-reasoning instruction; null where none "
        "was decoded",
    )
    reference: str | None = Field(
        description="the expert's action, under the driver `reference`; else null"
    )
    executed: str = Field(
        description='the text that the environment received; "" for an invalid response, which '
        'costs a step; "search:" for an invalid search of a growing text, which costs a search'
    )
    accepted: bool | None = Field(
        description="the environment carried `executed` out; null where it failed to answer"
    )
    score: float | None = Field(
        description="share of the goal reached after this turn, 0 to 1; null where the "
        "environment has no score, or failed to answer"
    )


class PlayedGame(_Model):
    """Which game was played."""

    id: str = Field(description="the same on every machine")
    task_type: str = Field(description="kind of task, in the world's words")
    split: str = Field(description="which split of the world's games it belongs to")


class Timing(_Model):
    """Seconds. Slots are decoded and stepped together, so a turn's time is shared among them."""

    environment_s: float = Field(description="the environment's resets and steps")
    waited_s: float = Field(description="the part of `environment_s` in which nothing was decoded")
    sampler_s: float = Field(description="decoding")
    total_s: float = Field(description="from reset to record, wall clock")


class Heading(_Model):
    """Whose weights played, and on which games."""

    schema_version: Literal[4] = Field(default=4, description="4")
    world: str = Field(description="the world that the game belongs to (`config.world`)")
    arm: str = Field(description="whose weights played; the base model is arm `base`")
    training_seed: int | None = Field(
        default=None,
        description="the seed that they were trained from, where the study names several "
        "(`config.seeds`); else null",
    )
    checkpoint: int = Field(description="step of the checkpoint; the base model is 0")
    checkpoint_hash: str = Field(
        description="BLAKE2b over the checkpoint's `sums.json`: sizes and checksums of its files"
    )
    games_hash: str = Field(description="sha256 over ids and contents of all games of the study")
    domain: str = Field(description="`in_domain`, or an OOD one: `ood`, `ood_rooms`, …")

    @property
    def member(self) -> str:
        """The arm under its seed, as `cotjax.runtime.members` names it."""
        return member_name(self.arm, self.training_seed)


class Episode(_Model):
    """One episode as the rollout loop played it."""

    driver: Driver = Field(
        description="whose action the environment received: `cot`, `prompt`, `cot_constrained`, "
        "`prompt_constrained`, `instructed`, or `reference` (an expert's recorded episode; nothing "
        "is played)"
    )
    game: PlayedGame = Field(description="`id`, `task_type`, `split` (below)")
    seed: int = Field(description="the study's seed")
    sample: int = Field(
        description="number of this episode among those of the game and driver, from 0; the gap "
        "compares samples of the same number"
    )
    task: str = Field(description="the instruction; empty when the game could not be started")
    success: bool = Field(description="the game was won")
    score: float | None = Field(
        description="share of the goal reached at the end, 0 to 1; null where the environment has "
        "no score"
    )
    ended: Ended = Field(
        description="`won`; `step_limit`; `length` (the prompt outgrew `evaluate.max_length`); "
        "`env_error`"
    )
    env_error: str | None = Field(
        description="the fault that used up the environment's retries, with game and step; else "
        "null"
    )
    env_faults: Many[str] = Field(
        description="all of the environment's faults, in order, retried with success or not"
    )
    elicitation: dict[str, Any] = Field(
        description="how actions were drawn out of the model: temperature, limits in tokens and "
        "steps, prefixes, what the history holds"
    )
    steps: Many[Turn] = Field(description="the turns (below)")
    final_observation: str | None = Field(
        description="the environment's last answer; null when there was none"
    )
    timing: Timing = Field(description="seconds (below)")


# The heading's fields come first in the file.
class Record(Episode, Heading):
    """An episode with its heading: what a record file holds."""

    @classmethod
    def of(cls, heading: Heading, episode: Episode) -> Self:
        """Return the record of an episode."""
        return cls(**dict(heading), **dict(episode))

    @model_validator(mode="after")
    def _check_driver(self) -> Self:
        """Require the driver's actions, and every kind in all turns or in none."""
        first = self.steps[:1]
        needed = {self.driver, *(kind for kind in KINDS for turn in first if getattr(turn, kind))}
        for number, turn in enumerate(self.steps):
            for name in DRIVERS:
                if name in needed and getattr(turn, name) is None:
                    raise ValueError(
                        f"steps[{number}].{name} is null; the driver or other turns need it"
                    )
            for name in ("cot_constrained", "prompt_constrained"):
                choice = getattr(turn, name)
                if choice is not None and {len(choice.logprobs), len(choice.tokens)} != {
                    len(turn.admissible_commands or ())
                }:
                    raise ValueError(
                        f"steps[{number}].{name} does not have one score for each of "
                        "admissible_commands"
                    )
        return self


def record_path(
    folder: str | Path, *, arm: str, checkpoint: int, driver: str, game_id: str, sample: int = 0
) -> Path:
    """Return the path of an episode's record.

    The name has a readable beginning of the game's id, a hash that keeps games apart, and the
    number of every sample after the first. `arm`: the member, of an arm with several seeds.
    """
    digest = hashlib.sha256(game_id.encode(errors="surrogatepass")).hexdigest()[:12]
    start = "".join(c if c.isalnum() or c in "-_" else "_" for c in game_id)[:60]
    number = f"-sample{sample}" if sample else ""
    return Path(folder) / arm / str(checkpoint) / driver / f"{start}-{digest}{number}.json"


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically. Lone surrogates, which UTF-8 cannot encode, become U+FFFD.

    Raises:
      InternalError: a number is not finite; JSON has none.
    """
    try:
        text = json.dumps(record.model_dump(), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InternalError(f"{path}: the record does not fit into JSON ({error})") from None
    if _SURROGATE.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    write_atomic(path, text)


def record_files(folder: str | Path) -> list[Path]:
    """Return the paths of all records under `folder`, in the natural order of their names.

    Raises:
      DataError: there is no such folder, or no record in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder of episode records; run `cotjax evaluate` first, or name "
            "the run folder that holds records/"
        )
    found = (path for path in folder.rglob("*.json") if not path.name.startswith("."))
    paths = sorted(found, key=natural_path)
    if not paths:
        raise DataError(f"{folder}: holds no episode record (*.json); run `cotjax evaluate` first")
    return paths


def read_records(folder: str | Path) -> Iterator[Record]:
    """Yield every record under `folder`, in the order of paths.

    Raises:
      DataError: there is none, or a file does not hold one.
    """
    for path in record_files(folder):
        yield read_record(path)


def read_record(path: Path) -> Record:
    """Read one record, of this schema or of schema 2 or 3.

    Raises:
      DataError: the file does not hold a record; the message names the file and the field.
    """
    try:
        content = from_json(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not a complete record ({error}); {_REMEDY}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version == 2:
        content = upgrade_2_to_3(content)
    if version in (2, 3):
        # Schema 3 had the kinds "cot" and "prompt" alone.
        content = content | {"schema_version": 4}
    elif version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: not a record of schema {SCHEMA_VERSION}, 3 or 2 (schema_version is "
            f"{version!r:.60}); {_REMEDY}"
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {_describe(error)}; {_REMEDY}") from None


def upgrade_2_to_3(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of schema 2 as one of schema 3.

    Schema 2 had ALFWorld alone, `nothing_happens` in place of `accepted`, and no score. Its first
    records had no `sample` and no `waited_s`. What is missing or malformed beyond that is left for
    validation to find.
    """
    defaults = {"world": "alfworld", "sample": 0, "score": None}
    upgraded = defaults | record | {"schema_version": 3}
    if isinstance(record.get("timing"), dict):
        upgraded["timing"] = {"waited_s": 0.0} | record["timing"]
    steps = record.get("steps")
    if not isinstance(steps, list):
        return upgraded
    steps = [{"score": None} | step if isinstance(step, dict) else step for step in steps]
    for step in steps:
        if isinstance(step, dict) and isinstance(step.get("nothing_happens"), bool):
            step["accepted"] = not step.pop("nothing_happens")
    # Schema 2 said "false" of a step that the environment failed to answer.
    if record.get("ended") == "env_error" and steps and isinstance(steps[-1], dict):
        steps[-1] |= {"accepted": None}
    return upgraded | {"steps": steps}


def _describe(error: ValidationError) -> str:
    """Return the first fault: the field's place and what is wrong with it."""
    fault = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    place = place.removeprefix(".")
    if fault["type"] == "missing":
        return f"lacks the field {place}"
    if not place:
        return fault["msg"].removeprefix("Value error, ")
    return f"{place} is {fault['input']!r:.60}: {fault['msg']}"
