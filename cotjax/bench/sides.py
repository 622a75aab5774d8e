"""Sides of a comparison: each a process of its own that answers a line of JSON with one, so that they can take turns.

`Side` is the end that asks. `answer_lines` is the other: what a module run by `python -m` does with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cotjax import errors
from cotjax.errors import CotjaxError, UsageError

# Large pages for all sides: a step's temporaries are hundreds of megabytes, and touching them 4 KB at a time takes a while.
_LARGE_PAGES = "glibc.malloc.hugetlb=1"


class Side:
    """A process that runs the module `worker`, and answers. The first that it is told is its job; started, it is warm.

    `name` is what messages call it; `folder` is for what it says to standard error. `job`, a dataclass, has at least `side`, "cotjax"
    or a peer, and `weights`, the folder that they come from where sides are compared.
    """

    worker: str

    def __init__(self, name: str, job: Any, folder: Path):
        self.name = name
        # Sides that compare share a GPU, of which jax alone would take most at once.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if job.weights else {}
        self._errors = folder / f"{name}.errors"
        with self._errors.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={"GLIBC_TUNABLES": _LARGE_PAGES} | environment | os.environ,
            )
        try:
            self.started = self.ask(json.dumps(asdict(job)))
            # The peer computes with all cores of a CPU, which cotjax may have split into devices.
            if (
                job.side == "cotjax"
                and job.weights
                and self.started["devices"] > 1
                and self.started["platform"] != "cpu"
            ):
                raise UsageError(
                    f"--peer runs on one device, and cotjax sees {self.started['devices']}; show it one alone"
                )
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """What it runs on, in words."""
        found = self.started
        return f"{self.name}: {found['versions']}; {found['devices']} x {found['device_kind']}, {found['cores']} cores"

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer. Raises the package's error that it answers with, and UsageError when it has stopped."""
        try:
            print(line, file=self._process.stdin, flush=True)
            answered = self._process.stdout.readline()
        except BrokenPipeError:
            answered = ""
        if not answered:
            said = self._errors.read_text(errors="replace").strip().splitlines()
            raise UsageError(
                f"{self.name} stopped (exit code {self._process.wait()}): {said[-1] if said else 'it said nothing'}"
            )
        found = json.loads(answered)
        if "error" in found:
            raise getattr(errors, found["error"])(found["message"])
        return found

    def close(self) -> None:
        """End the process: at the end of its input, or, in the midst of its work, by force."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def devices_of(rows: int, asked: int | None) -> int:
    """How many devices a side splits the CPU into that computes so many rows at once: `asked`, or as many as there are cores, if they
    divide the rows; else the next number below that does."""
    if asked is not None:
        return asked
    return next(
        devices for devices in range(len(os.sched_getaffinity(0)), 0, -1) if rows % devices == 0
    )


def check_same_platform(ours: Side, other: Side) -> None:
    """Raise UsageError when two sides run on different kinds of device."""
    if ours.started["platform"] != other.started["platform"]:
        raise UsageError(
            f"cotjax runs on {ours.started['platform']}, {other.name} on {other.started['platform']}: nothing to compare"
        )


def answer_lines(serve: Callable[[Callable[[], str], Callable[[dict], None]], None]) -> None:
    """Let `serve(ask, answer)` work off standard input; an error of the package is an answer.

    What libraries print goes where errors go, so that answers are all there is on standard output.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(found: dict) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        serve(sys.stdin.readline, answer)
    except CotjaxError as error:
        answer({"error": type(error).__name__, "message": str(error)})


def environment_of_sides() -> str:
    """What is set for all sides alike, in words."""
    tunables = os.environ.get("GLIBC_TUNABLES", _LARGE_PAGES)
    return f"GLIBC_TUNABLES={tunables} (large pages), XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
