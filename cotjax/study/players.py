"""What plays a checkpoint: samplers with its weights, or an endpoint that has the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.config import sampler_mesh
from cotjax.data.codec import Codec
from cotjax.errors import UsageError
from cotjax.formats import TurnTemplate
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh, whole_slots
from cotjax.rollout import contracts
from cotjax.rollout.elicitation import longest_response
from cotjax.runtime import distributed
from cotjax.sample.sampler import Sampler
from cotjax.study.jobs import Job


class Player(Protocol):
    """Plays checkpoints."""

    @property
    def codec(self) -> contracts.Codec:
        """Codec of its prompts."""

    @property
    def template(self) -> TurnTemplate:
        """Turn template of its prompts."""

    @property
    def slots(self) -> int:
        """Number of slots of each of its policies."""

    def policies(self, job: Job, number: int) -> Sequence[contracts.Policy]:
        """Return so many policies with the weights of a job's checkpoint; they share no slots."""


class LocalPlayer:
    """A model whose weights are loaded onto this process's devices (a `Player`)."""

    def __init__(self, config: ConfigDict, model: ModelConfig, codec: Codec, slots: int):
        """`slots`: at least so many of each policy; `sampler_of` says the other settings."""
        self.codec, self.template = codec, codec.template
        self._model = model
        self._sampler = sampler_of(config.evaluate, model, codec, playing_mesh(config), slots)
        self.slots = self._sampler.slots
        self._loaded: tuple[str, int] | None = None
        self._twins: list[Sampler] = []

    def policies(self, job: Job, number: int) -> Sequence[contracts.Policy]:
        """Return samplers. The weights of a checkpoint are loaded once for its drivers."""
        if self._loaded != (job.arm, job.checkpoint):
            mesh = self._sampler.mesh
            self._sampler.load(job.checkpoints.restore_params(job.checkpoint, self._model, mesh))
            self._twins = [self._sampler.twin() for _ in range(number - 1)]
            self._loaded = job.arm, job.checkpoint
        return [self._sampler, *self._twins]

    def unload(self) -> None:
        """Free the weights until the next call of `policies`."""
        self._loaded, self._twins = None, []
        self._sampler.unload()


def playing_mesh(config: ConfigDict) -> Mesh:
    """Return the mesh that this process plays on: its own devices.

    Raises:
      UsageError: a copy of the weights needs more devices than the process has.
    """
    try:
        return make_mesh(**sampler_mesh(config), devices=jax.local_devices())
    except UsageError as error:
        if not distributed.several():
            raise
        raise UsageError(
            f"{error}: each of {distributed.count()} processes plays with a copy of the weights on "
            f"its own {jax.local_device_count()} devices; set evaluate.tensor to a divisor of that"
        ) from None


def sampler_of(
    settings: ConfigDict,
    model: ModelConfig,
    codec: Codec,
    mesh: Mesh,
    slots: int,
    *,
    simulated: bool = False,
) -> Sampler:
    """Return a sampler with these `evaluate` settings, whose weights are yet to load.

    It draws the codec's tokens and stops at its texts. `simulated`: it may also write results of
    searches, whatever `settings.search` says.
    """
    return Sampler(
        model,
        mesh,
        slots=whole_slots(slots, mesh),
        max_length=settings.max_length,
        stop=codec.stop_texts,
        pad_id=codec.pad_id,
        max_new=longest_response(settings, simulated),
        pieces=codec.pieces,
    )
