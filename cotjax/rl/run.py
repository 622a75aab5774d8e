"""What a run of reinforcement learning is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cotjax.objectives.policy import Policy
from cotjax.train.run import Run


@dataclass(frozen=True, kw_only=True)
class RLRun(Run):
    """All that decides the result. `settings.steps` are steps of `rl.updates` updates each.

    objective: that of `policy_of`.

    rl: the config's `rl` section, with the arm's own advantage.
    playing: how actions are drawn, and the limits of an episode, as records say it.
    """

    rl: Any
    playing: Mapping[str, Any] = field(default_factory=dict)

    def bound(self) -> dict[str, Any]:
        """Return what a folder is bound to by this run: see `cotjax.runtime.claim`."""
        bound = super().bound() | {"rl": dict(self.rl) | {"playing": dict(self.playing)}}
        bound.pop("objective", None)  # `rl` says the same, by the names of the config
        return bound

    @property
    def updates(self) -> Any:
        """Return `settings` with its steps counted in updates, for the optimizer."""
        settings = self.settings.copy_and_resolve_references()
        for name in ("steps", "schedule_steps"):
            settings[name] *= self.rl.updates
        return settings


def policy_of(rl: Any) -> Policy:
    """Return the objective that a config's `rl` section describes."""
    return Policy(
        aggregation=rl.aggregation,
        tokens=rl.constant if rl.aggregation == "constant" else 0,
        clip=rl.clip_low,
        clip_high=rl.clip_high,
        dual_clip=rl.dual_clip or None,
        kl=rl.kl if rl.kl_in == "loss" else 0.0,
        kl_estimator=rl.kl_estimator,
        entropy=rl.entropy,
        truncation=rl.tis_cap,
        adaptive=_adapted(rl),
    )


def _adapted(settings: Any) -> tuple[str, ...]:
    """Return the terms of the loss whose weight follows a target. `settings`: `config.rl`."""
    in_loss = settings.kl_in == "loss"
    targets = {"kl": in_loss and settings.kl_target, "entropy": settings.entropy_target}
    return tuple(name for name, target in targets.items() if target)
