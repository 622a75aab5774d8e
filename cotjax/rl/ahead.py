"""Which weights play which step: those before its update, or earlier ones (`rl.off_policy_steps`).

    off_policy_steps 0    play 1 (w0) update 1 | play 2 (w1) update 2 | play 3 (w2) update 3
    off_policy_steps 1    play 1 (w0) play 2 (w0) update 1 | play 3 (w1) update 2 | update 3

With 1 a step's rollouts need nothing of the update of the step before it, so the sampler can play
them on devices of its own while that update is made (`rl.play_devices`). The rollouts are the same
where both share the devices and take turns. The weights that played them are gone after the update:
a checkpoint names what was played ahead of it, and a run resumes from the files of these steps, or
not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from cotjax.errors import DataError
from cotjax.model.params import Params, param_shardings
from cotjax.rl.groups import Stream
from cotjax.rl.play import Actors, Waits, played_or_read, read_played
from cotjax.rl.rollouts import Rollouts, rollouts_file
from cotjax.rl.run import RLRun
from cotjax.rollout.background import in_background


@dataclass(frozen=True)
class Ahead:
    """A step that is played, and not trained on yet.

    begin: the stream's position before it. policy: hash of the weights that played.
    weights: the step after which they were the policy's.
    """

    step: int
    begin: int
    policy: str
    weights: int


class Plays:
    """The rollouts of each step of a run, one after another, played by the weights that are due."""

    def __init__(
        self,
        run: RLRun,
        folder: Path,
        actors: Actors,
        stream: Stream,
        warn: Callable[[str], None],
        place: Mapping[str, Any],
    ):
        """`folder`: the arm's. `place`: `place` of these, and "step", at the last checkpoint."""
        self._run, self._folder, self._actors = run, folder, actors
        self._stream, self._warn = stream, warn
        self._waiting = [Ahead(**each) for each in place.get("ahead", ())]
        self._last = place["step"] + len(self._waiting)  # the last step that is played
        self._position = place["position"]
        self._kept: dict[int, Rollouts] = {}
        self._waits = Waits()
        self._meanwhile: Future[tuple[Rollouts, Waits]] | None = None
        self._weights = 0  # that play meanwhile
        # Where weights lie that are copied to the sampler's devices.
        sampler = actors.sampler
        self._placed = param_shardings(sampler.config, sampler.mesh)

    @property
    def place(self) -> dict[str, Any]:
        """What a checkpoint keeps: the stream's position, and what is played and not trained on."""
        return {"position": self._position, "ahead": [asdict(each) for each in self._waiting]}

    def of(self, step: int, params: Params) -> tuple[Rollouts, int]:
        """Return the rollouts of a step, and how old the weights are that played them.

        Steps come in order, and `wait` after each. All that are due with these weights are played,
        or read from their files; those of later steps meanwhile, where the sampler has devices of
        its own. The weights' age is the number of steps whose updates they lack.

        Args:
          params: those after step - 1. They may be donated afterwards.

        Raises:
          DataError: the file of a step that was played ahead is lost or damaged.
        """
        due = min(step + self._run.rl.off_policy_steps, self._run.settings.steps)
        apart = self._run.rl.play_devices > 0
        for each in range(self._last + 1, due + 1):
            if apart and each > step:
                copied = jax.device_put(params, self._placed, may_alias=False)
                self._meanwhile = in_background(self._play, each, jax.block_until_ready(copied))
                self._weights = step - 1
            else:
                self._keep(self._play(each, params), step - 1)
        ahead = self._waiting.pop(0)
        rollouts = self._kept.pop(step, None) or self._reread(ahead)
        return rollouts, step - 1 - ahead.weights

    def wait(self) -> Waits:
        """Return once all that is due is played; return what playing it cost since the last call.

        Raises what playing raises.
        """
        if self._meanwhile is not None:
            played, self._meanwhile = self._meanwhile.result(), None
            self._keep(played, self._weights)
        waits, self._waits = self._waits, Waits()
        return waits

    def _play(self, step: int, params: Params) -> tuple[Rollouts, Waits]:
        return played_or_read(
            rollouts_file(self._folder, step),
            self._actors,
            params,
            self._stream,
            self._run.rl,
            step=step,
            begin=self._position,
            seed=self._run.seed,
            warn=self._warn,
        )

    def _keep(self, played: tuple[Rollouts, Waits], weights: int) -> None:
        rollouts, waits = played
        about = rollouts.about
        self._waiting.append(Ahead(about.step, about.begin, about.policy, weights))
        self._kept[about.step] = rollouts
        self._last, self._position = about.step, about.end
        self._waits += waits

    def _reread(self, ahead: Ahead) -> Rollouts:
        """Return what was played ahead of the checkpoint that this run resumes from."""
        path = rollouts_file(self._folder, ahead.step)
        try:
            return read_played(path, self._run.rl, **asdict(ahead))
        except DataError as error:
            fault = str(error).partition(";")[0]
        raise DataError(
            f"{fault}; with rl.off_policy_steps 1 these weights are gone: restore the file, or "
            f"remove checkpoints/{ahead.step - 1}, and the same command resumes from the one before"
        )
