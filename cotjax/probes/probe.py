"""What a probe is: a measurement at single states of the episodes that were played.

A probe is a module of this room with a class, its rows in `cotjax.diagnostics`, and an entry in
`PROBES` (`cotjax.probes.catalog`) and `PROBE_ROWS` (`cotjax.diagnostics.probes`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.diagnostics.probe_rows import ProbeRow
from cotjax.envs.base import Game
from cotjax.envs.worlds import World
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.rollout.contracts import Policy
from cotjax.rollout.record import Driver, Record, Turn, read_record


@dataclass(frozen=True, eq=False)
class State:
    """One turn of an episode: what the model was asked there, and what it answered.

    Attributes:
      number: of the turn in the episode, from 0.
    """

    record: Record
    number: int

    @property
    def turn(self) -> Turn:
        """The turn in the record."""
        return self.record.steps[self.number]

    @property
    def prompt_ids(self) -> list[int]:
        """Ids of the whole prompt: all that the model was shown, up to the response."""
        return [id_ for turn in self.record.steps[: self.number + 1] for id_ in turn.prompt_ids]

    @property
    def place(self) -> dict[str, Any]:
        """The fields of a row that say which state it is of."""
        record = self.record
        return {
            "driver": record.driver,
            "game": record.game.id,
            "domain": record.domain,
            "sample": record.sample,
            "turn": self.number,
        }

    @property
    def key(self) -> tuple[str, str, int, int]:
        """As `ProbeRow.key`."""
        return self.record.driver, self.record.game.id, self.record.sample, self.number


class Weights(NamedTuple):
    """A checkpoint's parameters on the devices that play."""

    model: ModelConfig
    params: Params
    mesh: Mesh


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One checkpoint of an arm, with all that a probe may ask of it.

    Attributes:
      arm: of an arm with several seeds, the member.
      games: id -> game, of all that are played.
      files: the records of the checkpoint's episodes, in order.
      load_policy, load_weights: `policy` and `weights`, loaded when they are first needed.
      load_base: loads a sampler with the weights of the study's base; None where there is none.
      workers: processes that a probe may start; 0 and 1: it works in this one.
      say: says a warning, a sentence.
    """

    arm: str
    step: int
    digest: str
    config: ConfigDict
    world: World
    games: Mapping[str, Game]
    codec: Codec
    files: Sequence[Path]
    load_policy: Callable[[], Policy]
    load_weights: Callable[[], Weights]
    workers: int
    say: Callable[[str], None]
    load_base: Callable[[], Policy] | None = None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return next(each for each in self.files[0].parents if each.name == "records").parent

    @cached_property
    def policy(self) -> Policy:
        """The sampler, with the checkpoint's weights. Its slots may hold prompts of before."""
        return self.load_policy()

    @cached_property
    def weights(self) -> Weights:
        """The checkpoint's parameters."""
        return self.load_weights()

    @cached_property
    def reference_states(self) -> list[State]:
        """All expert states. Their records are read once for all probes."""
        return states_of(self.records("reference"))

    @cached_property
    def expert_states(self) -> list[State]:
        """The expert states that were drawn."""
        return drawn(self.reference_states, self.config)

    def records(self, *drivers: Driver) -> Iterator[Record]:
        """Yield the records of these drivers that their environment did not break."""
        for path in self.files:
            if path.parent.name in drivers:
                record = read_record(path)
                if record.ended != "env_error":
                    yield record


class Probe(Protocol):
    """A measurement at states.

    Attributes:
      name: in `config.probes.names`, in paths and in the rows' heading.
      title: what it is doing, for the progress line.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError where the config or its world do not allow this probe."""

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return all that the numbers depend on, beside weights and episodes.

        Where it changes, what was measured before is set aside and measured again.
        """

    def states(self, at: Checkpoint) -> list[State]:
        """Return the states to measure."""

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[ProbeRow]:
        """Yield one row for each of these states, in any order, as soon as it is measured.

        `states` lacks those that an earlier run measured.
        """


def states_of(records: Iterable[Record]) -> list[State]:
    """Return all states of records, in order."""
    return [State(record, number) for record in records for number in range(len(record.steps))]


def drawn(states: Iterable[State], config: ConfigDict, count: int | None = None) -> list[State]:
    """Return `config.probes.states` states of each domain, drawn by `config.seed`.

    Expert states are the same at every checkpoint, and so is their sample.

    `count`: so many instead; 0: all.
    """
    count = config.probes.states if count is None else count
    by_domain: dict[str, list[State]] = {}
    for state in states:
        by_domain.setdefault(state.record.domain, []).append(state)
    chosen = []
    for domain, within in sorted(by_domain.items()):
        within = sorted(within, key=lambda state: state.key)
        if count and count < len(within):
            within = random.Random(f"probes/{config.seed}/{domain}").sample(within, count)
        chosen += sorted(within, key=lambda state: state.key)
    return chosen
