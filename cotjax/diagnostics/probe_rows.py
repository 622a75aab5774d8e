"""Rows of probes: what was measured at single states, beside what is played.

A probe writes `<run>/probes/<probe>/<arm>/<checkpoint>.jsonl` (`<arm>/seed-<seed>/` where the study
names seeds): a heading, then one row a state. Its row says what the state adds to each of the
probe's metrics, and so its metrics are paired, compared and reported like all others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from cotjax.diagnostics.lines import parse_line
from cotjax.diagnostics.metric import Metric, at_layer
from cotjax.errors import DataError
from cotjax.rollout.record import Driver
from cotjax.runtime.members import member_name, natural_path

FOLDER = "probes"
_REMEDY = "delete the file and measure again with `cotjax probe`"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")


class ProbeHeading(_Model):
    """The first line of a file: what was measured, and on what."""

    schema_version: Literal[1] = Field(default=1, description="1")
    probe: str = Field(description="name of the probe")
    arm: str = Field(description="whose weights were measured; the base model is arm `base`")
    training_seed: int | None = Field(default=None, description="as in episode records")
    checkpoint: int = Field(description="step of the checkpoint; the base model is 0")
    checkpoint_hash: str = Field(description="as in episode records")
    games_hash: str = Field(description="as in episode records")
    settings: dict[str, Any] = Field(
        description="all that the numbers depend on, beside weights and episodes"
    )
    states: int = Field(description="rows that a finished file has")

    @property
    def member(self) -> str:
        """As `Heading.member` of a record."""
        return member_name(self.arm, self.training_seed)


class ProbeRow(_Model, ABC):
    """What a probe measured at one state of an episode. A subclass adds its fields.

    Attributes:
      metrics: name -> metric, of all that `counts` may give.
      differences: a metric that is the difference of two of them, on the same states -> the two.
    """

    metrics: ClassVar[Mapping[str, Metric]]
    differences: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType({})

    driver: Driver = Field(description="of the episode that the state belongs to")
    game: str = Field(description="id of the game")
    domain: str = Field(description="as in episode records")
    sample: int = Field(description="number of the episode among those of the game and driver")
    turn: int = Field(description="number of the turn in the episode, from 0")

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What no two rows of a file have in common."""
        return self.driver, self.game, self.sample, self.turn

    @abstractmethod
    def counts(self) -> Mapping[str, float]:
        """Return what this state adds to each metric; metrics that say nothing here are not in it.

        0 or 1 for a rate, the value itself for a mean.
        """

    def layers(self) -> Mapping[str, Sequence[float]]:
        """Return what this state adds to a metric in each layer, from the first layer on.

        Only of metrics that are measured by layer too.
        """
        return {}


Row = TypeVar("Row", bound=ProbeRow)


def read_probe(path: Path, row: type[Row]) -> tuple[ProbeHeading, list[Row]]:
    """Return the heading and the rows of a probe's file, in the order of their keys.

    Raises:
      DataError: a line is malformed, or two rows are of one state; the message names the line.
    """
    try:
        # A row may hold other separators of lines, such as U+2028, as they are.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    if lines == [""]:
        raise DataError(f"{path}: is empty; {_REMEDY}")
    heading = parse_line(path, 1, lines[0], ProbeHeading, _REMEDY)
    rows: dict[tuple, Row] = {}
    for number, line in enumerate(lines[1:], 2):
        parsed = parse_line(path, number, line, row, _REMEDY)
        if parsed.key in rows:
            raise DataError(f"{path}:{number}: a second row of the same state; {_REMEDY}")
        rows[parsed.key] = parsed
    return heading, [rows[key] for key in sorted(rows)]


def probe_files(run_folder: Path, probe: str) -> Iterator[Path]:
    """Yield the finished files of a probe in a run's folder, in order."""
    yield from sorted((run_folder / FOLDER / probe).rglob("*.jsonl"), key=natural_path)


@dataclass(frozen=True)
class Measured:
    """A state's counts, with the place they belong to.

    Attributes:
      arm: the member.
      counts: what it adds to each metric, by layer too (`cotjax.diagnostics.metric.at_layer`).
    """

    arm: str
    checkpoint: int
    domain: str
    game: str
    sample: int
    counts: Mapping[str, float]

    @classmethod
    def of(cls, heading: ProbeHeading, row: ProbeRow) -> Self:
        """Return what a row counts for."""
        by_layer = {
            at_layer(metric, layer): value
            for metric, values in row.layers().items()
            for layer, value in enumerate(values)
        }
        return cls(
            arm=heading.member,
            checkpoint=heading.checkpoint,
            domain=row.domain,
            game=row.game,
            sample=row.sample,
            counts={**row.counts(), **by_layer},
        )
