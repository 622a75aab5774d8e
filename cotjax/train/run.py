"""What a training run is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jax.sharding import Mesh

from cotjax.masking import Dropping
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.objectives.objective import Objective, Spec
from cotjax.objectives.supervised import make_objective


@dataclass(frozen=True)
class Run:
    """All that decides the result of training.

    settings: the config's `train` section.
    dropping: which roles are trained on, and which targets are dropped.
    model: the decoder.
    make_params: returns the first parameters, on a mesh.
    seed: of the data's order and the masking.
    made_from: fingerprints of data, tokenizer and base (`cotjax.runtime.content`); None: unknown.
    config: the whole config, kept in every checkpoint; None: there is none.
    normalizer: what the supervised loss is divided by, one of `cotjax.masking.NORMALIZERS`.
    objective: what is minimised instead, such as `cotjax.objectives.preference.Preference`; None:
      the supervised loss.
    """

    settings: Any
    dropping: Dropping
    model: ModelConfig
    make_params: Callable[[Mesh], Params]
    seed: int
    made_from: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    normalizer: str = "token_sum"
    objective: Spec | None = None

    @property
    def kind(self) -> str:
        """The kind of its batches, a key of `cotjax.train.step.FIELDS`."""
        return "supervised" if self.objective is None else self.objective.kind

    def make_objective(self, mesh: Mesh, **layers: Any) -> Objective:
        """Return the objective of its model; `layers` as `Spec.make` takes them."""
        if self.objective is None:
            return make_objective(self.model, mesh, normalizer=self.normalizer, **layers)
        return self.objective.make(self.model, mesh, **layers)

    def bound(self) -> dict[str, Any]:
        """Return what a folder is bound to by this run: see `cotjax.runtime.claim`."""
        bound = {
            "train": dict(self.settings),
            "masking": self.dropping.values() | {"normalizer": self.normalizer},
            "model": asdict(self.model),
            "seed": self.seed,
        }
        if self.objective is not None:
            bound["objective"] = self.objective.values()
        return bound | ({"made_from": self.made_from} if self.made_from else {})

    def held_out_steps(self, saves: Collection[int]) -> set[int]:
        """Return the steps after which the held-out loss is measured.

        These are every `eval_every` steps, and those at which the run saves by plan.
        """
        every = self.settings.eval_every
        return {*range(0, self.settings.steps + 1, every), *saves} if every else set()
