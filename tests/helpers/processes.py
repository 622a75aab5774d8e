"""Starts several processes that make one run, over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def environment(devices: int | None) -> dict[str, str]:
    """Of a process with so many emulated devices; None: as many as it makes itself."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "train")))
    # On a busy machine a device may wait longer for another than the 40 seconds after which XLA gives up.
    patient = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    named = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    own = {} if devices is None else {"JAX_NUM_CPU_DEVICES": str(devices)}
    return named | own | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "XLA_FLAGS": patient}


def start_process(
    command: Sequence[object], devices: int | None = 1, **more: str
) -> subprocess.Popen:
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
    """(exit code, stdout, stderr) of each, when all have ended; what has not by then is killed, and the test fails."""
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
    """Run a script of this folder as `count` processes: SCRIPT host:port count process ARGUMENTS."""
    address = free_address()
    started = [
        start_process([TESTS / script, address, count, process, *arguments], devices, **more)
        for process in range(count)
    ]
    return ended(started)
