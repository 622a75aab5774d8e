"""What is asked of a maker of games, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cotjax.errors import UsageError


def check_request(
    counts: Mapping[str, Mapping[str, int]],
    seed: int,
    splits: Collection[str],
    task_types: Collection[str],
    games: str = "games",
) -> None:
    """Check `counts[split][task_type]` games and their seed, as `World.make_games` gets them.

    `games`: what they are called in messages. Raises UsageError for a split or task type that is
    not there, a number that is no count, or no games at all.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(f"the seed of {games} must be a whole number, not {seed!r}")
    for split, types in counts.items():
        if split not in splits:
            raise UsageError(f"no split is called {split!r}: choose from {', '.join(splits)}")
        for task_type, count in types.items():
            if task_type not in task_types:
                raise UsageError(
                    f"no task type is called {task_type!r} (split {split}): "
                    f"choose from {', '.join(task_types)}"
                )
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise UsageError(
                    f"the number of {split} {games} of {task_type} must be a whole number from 0 "
                    f"up, not {count!r}"
                )
    if not any(count for types in counts.values() for count in types.values()):
        raise UsageError(
            f"no {games} are asked for: give at least one split and task type a number above 0"
        )
