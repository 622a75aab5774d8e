"""Processes that take turns at a task, one for each side of a comparison. See `worker`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cotjax.bench.jobs import Job, to_line
from cotjax.envs.pool.messages import error_from_message
from cotjax.errors import UsageError

# Large pages on every side: a step's temporaries are hundreds of megabytes, and page faults of
# 4 KB take a noticeable share of it.
_LARGE_PAGES = "glibc.malloc.hugetlb=1"


class Side:
    """A worker process with its job. The constructor returns when the worker is warm.

    Attributes:
      name: what messages call it.
      started: the worker's answer to the job; see `worker.serve`.
      rounds: its answers to `measure`, in order.
    """

    def __init__(self, job: Job, folder: Path):
        """Start the worker. `folder`: for the file that holds its standard error.

        Raises:
          UsageError: the worker has stopped; the message ends with what it printed last.
          CotjaxError: an error of the package, raised by the worker.
        """
        self.name, self.rounds = job.name, list[dict[str, Any]]()
        # Sides share a GPU, of which jax alone would allocate most at once.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if job.weights else {}
        self._errors = folder / f"{self.name}.errors"
        with self._errors.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cotjax.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={"GLIBC_TUNABLES": _LARGE_PAGES} | environment | os.environ,
            )
        try:
            self.started = self._ask(to_line(job))
            self._check_devices(job)
        except BaseException:
            self.close()
            raise

    def _check_devices(self, job: Job) -> None:
        # A baseline uses all cores of a CPU, which cotjax may have split into devices.
        count, accelerator = self.started["devices"], self.started["platform"] != "cpu"
        if job.side == "cotjax" and job.weights and accelerator and count > 1:
            raise UsageError(
                f"--peer runs on one device, and cotjax sees {count}; show it one alone"
            )

    @property
    def where(self) -> str:
        """Its versions, devices and cores, in words."""
        facts = self.started
        devices = f"{facts['devices']} x {facts['device_kind']}, {facts['cores']} cores"
        return f"{self.name}: {facts['versions']}; {devices}"

    @property
    def first_s(self) -> float:
        """Seconds from nothing (no model, no weights) to the end of the first repetition."""
        return self.started["setup_s"] + self.started["first_s"]

    @property
    def seconds(self) -> tuple[tuple[float, ...], ...]:
        """Seconds of every repetition, by round."""
        return tuple(tuple(each["seconds"]) for each in self.rounds)

    def measure(self, count: int) -> None:
        """Run a round of `count` repetitions, and append the answer to `rounds`."""
        self.rounds.append(self._ask(str(count)))

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            print(line, file=stdin, flush=True)
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            printed = self._errors.read_text(errors="replace").strip().splitlines()
            last = printed[-1] if printed else "it printed nothing"
            raise UsageError(f"{self.name} stopped (exit code {self._process.wait()}): {last}")
        message = json.loads(answer)
        if "error" in message:
            raise error_from_message(message["error"])
        return message

    def close(self) -> None:
        """End the process by closing its input; kill it after five seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def check_same_platform(ours: Side, other: Side) -> None:
    """Raise UsageError when two sides run on different kinds of device."""
    mine, theirs = ours.started["platform"], other.started["platform"]
    if mine != theirs:
        raise UsageError(f"cotjax runs on {mine}, {other.name} on {theirs}: nothing to compare")


def devices_of(rows: int, asked: int | None) -> int:
    """Return the number of devices to split the CPU into, for `rows` computed at once.

    That is `asked`, or else the largest divisor of `rows` that is at most the number of cores.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0))
    return next(devices for devices in range(cores, 0, -1) if rows % devices == 0)


def environment_of_sides() -> str:
    """Return the environment variables that all sides share, in words."""
    tunables = os.environ.get("GLIBC_TUNABLES", _LARGE_PAGES)
    return f"GLIBC_TUNABLES={tunables} (large pages), XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
