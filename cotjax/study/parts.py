"""Parts of a study: some of its arms in one process, others in other processes at the same time.

They share a run's folder. Games, trajectories and datasets are made by the first process that needs
them, while the others wait; each trains, plays and measures its own arms. The base is played with
the first arm. What no part has done is done by the whole study's command, which writes the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.errors import UsageError
from cotjax.runtime import distributed
from cotjax.runtime.members import arm_and_seed
from cotjax.study.starts import in_order, start_of

# Hidden, as a folder with hidden files alone is still new.
_LOCK = ".part.lock"


def part_of(config: ConfigDict, names: Sequence[str]) -> tuple[str, ...]:
    """Return the members of a part, in order of training.

    `names`: arms, of which all members are meant, or members such as "sft/seed-0"; (): all.

    Raises:
      UsageError: an unknown name, or a part of a run that several processes train together.
    """
    members = in_order(config)
    if not names:
        return tuple(members)
    if distributed.several():
        raise UsageError("--arms is for processes that work alone: start each without the others")
    known = {name: {arm_and_seed(name)[0], name} for name in members}
    for name in names:
        if not any(name in each for each in known.values()):
            raise UsageError(f"--arms names {name!r}; there are {', '.join(members)}")
    return tuple(member for member, each in known.items() if not each.isdisjoint(names))


def root_of(config: ConfigDict, member: str) -> str:
    """Return the member that starts from the base where this one's chain of starts begins."""
    while (place := start_of(config, member)) is not None:
        member = place.member
    return member


def parts_of(config: ConfigDict) -> list[tuple[str, ...]]:
    """Return the smallest parts that need nothing of each other: members by what they start from.

    In the order of seeds, so that what is done of a study that was stopped can be reported.
    """
    parts: dict[str, list[str]] = {}
    for member in in_order(config):
        parts.setdefault(root_of(config, member), []).append(member)
    # Without seeds, and among equal ones, the order is that of training.
    by_seed = sorted(parts, key=lambda root: arm_and_seed(root)[1] or 0)
    return [tuple(parts[root]) for root in by_seed]


@contextmanager
def in_turn(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time make what the parts of a run share.

    The lock of a process that was killed is free. `say`: gets a line when another has it.
    """
    import filelock

    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"Waiting for another process that makes what all parts of {folder} share")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
