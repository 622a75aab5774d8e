"""Several processes of one run, over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]


def free_address() -> str:
    """Return host:port of a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def environment(devices: int | None) -> dict[str, str]:
    """Return the environment of a process with `devices` emulated devices (None: its choice)."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "train")))
    # XLA gives up after 40 seconds, but on a busy machine devices may wait longer for each other.
    patient = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {patient}".strip()
    named = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    own = {} if devices is None else {"JAX_NUM_CPU_DEVICES": str(devices)}
    return named | own | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "XLA_FLAGS": flags}


def start_process(
    command: Sequence[object], devices: int | None = 1, **more: str
) -> subprocess.Popen:
    """Start a Python script with its arguments."""
    text = [sys.executable, *map(str, command)]
    return subprocess.Popen(
        text,
        env=environment(devices) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(
    processes: Sequence[subprocess.Popen], timeout: float = 600
) -> list[tuple[int, str, str]]:
    """Wait for all; return (exit code, stdout, stderr) of each.

    Raises:
      TimeoutExpired: one did not end in `timeout` seconds. All are killed.
    """
    try:
        results = []
        for process in processes:
            out, error = process.communicate(timeout=timeout)
            results.append((process.returncode, out, error))
        return results
    finally:
        for process in processes:
            process.kill()


def run_together(
    script: str, count: int, *arguments: object, devices: int = 1, **more: str
) -> list[tuple[int, str, str]]:
    """Run a script of the tests as `count` processes; return (exit code, stdout, stderr) of each.

    Its arguments are host:port, count, the number of the process, and `arguments`.
    """
    address = free_address()
    started = [
        start_process([TESTS / script, address, count, process, *arguments], devices, **more)
        for process in range(count)
    ]
    return ended(started)
