"""One function over many jobs, in processes that each set up once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Worker(Protocol):
    """What one process sets up."""

    def do(self, job: Any) -> Any:
        """Do one job, after another."""

    def close(self) -> None:
        """Free what it holds."""


@contextmanager
def outcomes(
    make: Callable[[], Worker], jobs: Sequence[Any], workers: int
) -> Iterator[Iterator[Any]]:
    """Yield the outcomes of the jobs, in their order.

    Args:
      make: makes a worker; picklable, as jobs and outcomes are. What it raises is raised here.
      workers: processes; 0 and 1 work in this one.
    """
    if workers <= 1:
        worker = make()
        try:
            yield map(worker.do, jobs)
        finally:
            worker.close()
        return
    # Spawn, not fork: the parent may hold a jax runtime, whose threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(
        max(1, min(workers, len(jobs))), _start, (make,)
    ) as pool:
        yield pool.imap(_do, jobs, chunksize=4)


# Set by the initializer of a process; the pool has no other way to hand it to the jobs.
_worker: Worker


class _Unmade:
    """In place of a worker that cannot be made: a pool would start its process again, for good."""

    def __init__(self, error: Exception):
        self._error = error

    def do(self, job: Any) -> Any:
        raise self._error

    def close(self) -> None:
        pass


def _start(make: Callable[[], Worker]) -> None:
    global _worker
    try:
        _worker = make()
    except Exception as error:
        _worker = _Unmade(error)


def _do(job: Any) -> Any:
    return _worker.do(job)
