"""The example episodes of a prompt: drawn from the training trajectories, kept in the run.

    <run>/prompt.json    {"examples": [{"id", "game", "task", "steps": […]}, …], "left_out": [ids]}

They are drawn once, by seed. Training, playing and exporting read the file, so all show the same.
An example's trajectory, and every other one of its game, is not trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cotjax.data.selection import Selection
from cotjax.data.trajectories import Trajectory, read_trajectories
from cotjax.errors import DataError
from cotjax.formats import Example, ExampleStep
from cotjax.masking import draw
from cotjax.runtime.files import write_atomic

FILE = "prompt.json"
_Found = tuple[float, str, str, str]  # draw, id, task type and game of a trajectory
_NO_GAME = ("", "unknown")  # of trajectories that do not name their game


@dataclass(frozen=True)
class Drawn:
    """Example episodes, and the ids of the trajectories that are not trained on for them."""

    examples: tuple[Example, ...] = ()
    left_out: tuple[str, ...] = ()


NONE_DRAWN = Drawn()
_SCHEMA = TypeAdapter(Drawn)


def draw_examples(path: Path, selection: Selection, count: int, seed: int) -> Drawn:
    """Draw `count` example episodes of a trajectory file, of as many task types as there are.

    Args:
      selection: which trajectories a run trains on; examples are among them.
      seed: of the run; with a trajectory's id it decides the draw.

    Raises:
      DataError: the file has fewer trajectories that can be shown.
    """
    if not count:
        return NONE_DRAWN
    # Ids first: the file may be large, and few episodes are kept.
    found = [
        (draw(seed, f"example/{each.id}"), each.id, each.task_type, each.game)
        for each in read_trajectories(path)
        if selection.reason(each) is None and _whole(each)
    ]
    if len(found) < count:
        raise DataError(
            f"{path}: prompt.examples is {count}, but only {len(found)} of its trajectories can be "
            "shown (trained on, with a thought in every step or in none); lower it"
        )
    chosen = {id: game for _, id, _, game in _spread(sorted(found))[:count]}
    games, shown, left_out = {*chosen.values()}.difference(_NO_GAME), {}, []
    for each in read_trajectories(path):
        if each.id in chosen:
            shown[each.id] = _example(each)
        if each.id in chosen or each.game in games:
            left_out.append(each.id)
    return Drawn(tuple(shown[id] for id in chosen), tuple(left_out))


def keep_examples(run: Path, drawn: Drawn) -> None:
    """Write the drawn examples into a run's folder."""
    write_atomic(run / FILE, json.dumps(asdict(drawn), indent=2, ensure_ascii=False) + "\n")


def kept_examples(run: Path) -> Drawn | None:
    """Return the examples that a run keeps; None where it keeps none.

    Raises DataError for a file that is malformed.
    """
    file = run / FILE
    if not file.is_file():
        return None
    try:
        return _SCHEMA.validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{file}: not a prompt's examples ({error.errors()[0]['msg']}); restore it, or choose "
            "another folder with --out"
        ) from None


def _whole(trajectory: Trajectory) -> bool:
    """Whether all steps are trained on, and all or none of them reason."""
    thoughts = {step.thought is not None for step in trajectory.steps}
    return len(thoughts) == 1 and all(step.trained for step in trajectory.steps)


def _spread(found: list[_Found]) -> list[_Found]:
    """Order so that each task type comes once before any comes twice."""
    seen: dict[str, int] = {}
    rounds = []
    for each in found:
        rounds.append((seen.setdefault(each[2], 0), each))
        seen[each[2]] += 1
    return [each for _, each in sorted(rounds, key=lambda pair: pair[0])]


def _example(trajectory: Trajectory) -> Example:
    steps = tuple(
        ExampleStep(step.observation, step.thought, step.action, step.admissible_commands)
        for step in trajectory.steps
    )
    return Example(trajectory.id, trajectory.game, trajectory.task, steps)
