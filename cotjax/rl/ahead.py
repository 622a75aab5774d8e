"""Which weights play which step: those before its update, or earlier ones (`rl.off_policy_steps`).

    off_policy_steps 0    play 1 (w0) update 1 | play 2 (w1) update 2 | play 3 (w2) update 3
    off_policy_steps 1    play 1 (w0) play 2 (w0) update 1 | play 3 (w1) update 2 | update 3

With 1 a step's rollouts are there before the update of the step before it, as where a sampler with
devices of its own plays while the trainer trains. The weights that played them are gone once that
update is made. So a checkpoint names what was played ahead of it, and a run resumes from the files
of these steps, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cotjax.errors import DataError
from cotjax.model.params import Params
from cotjax.rl.groups import Stream
from cotjax.rl.play import Actors, Waits, played_or_read
from cotjax.rl.rollouts import Rollouts, read_rollouts, rollouts_file
from cotjax.rl.run import RLRun


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

    @property
    def place(self) -> dict[str, Any]:
        """What a checkpoint keeps: the stream's position, and what is played and not trained on."""
        return {"position": self._position, "ahead": [asdict(each) for each in self._waiting]}

    def of(self, step: int, params: Params) -> tuple[Rollouts, Waits, int]:
        """Return the rollouts of a step, what playing cost now, and how old their weights are.

        Steps come in order. All that are due with these weights are played, or read from their
        files. The weights' age is the number of steps whose updates they lack.

        Args:
          params: those after step - 1.

        Raises:
          DataError: the file of a step that was played ahead is lost or damaged.
        """
        waits = Waits()
        while self._last < min(step + self._run.rl.off_policy_steps, self._run.settings.steps):
            waits += self._play(self._last + 1, params, step - 1)
        ahead = self._waiting.pop(0)
        rollouts = self._kept.pop(step, None) or self._reread(ahead)
        return rollouts, waits, step - 1 - ahead.weights

    def _play(self, step: int, params: Params, weights: int) -> Waits:
        rollouts, waits = played_or_read(
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
        about = rollouts.about
        self._waiting.append(Ahead(step, about.begin, about.policy, weights))
        self._kept[step] = rollouts
        self._last, self._position = step, about.end
        return waits

    def _reread(self, ahead: Ahead) -> Rollouts:
        """Return what was played ahead of the checkpoint that this run resumes from."""
        path = rollouts_file(self._folder, ahead.step)
        try:
            rollouts = read_rollouts(path, self._run.rl)
            about = rollouts.about
            if (about.step, about.begin, about.policy) == (ahead.step, ahead.begin, ahead.policy):
                return rollouts
            fault = f"{path}: other weights than those of step {ahead.weights} played it"
        except DataError as error:
            fault = str(error).partition(";")[0]
        raise DataError(
            f"{fault}; with rl.off_policy_steps 1 these weights are gone: restore the file, or "
            f"remove checkpoints/{ahead.step - 1}, and the same command resumes from the one before"
        )
