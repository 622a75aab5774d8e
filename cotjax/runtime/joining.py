"""How the processes of one run find each other: on a TPU pod, GKE, SLURM, or by an address.

join()               # before any device is used; a single process returns at once
check(devices=32)    # the processes and devices are those expected
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections import Counter
from typing import Any

import jax
from jax._src import cloud_tpu_init
from jax._src import distributed as jax_distributed

from cotjax.errors import UsageError
from cotjax.runtime.distributed import DAY_MS, client, count, first, own_process, unique_key
from cotjax.runtime.stopping import exit_now, watch


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout_s: float = 300,
    heartbeat_s: int = 100,
) -> None:
    """Join the other processes of this run, before any device is used. A second call does nothing.

    Without the first three arguments jax finds the tasks of a SLURM step and the hosts of a TPU
    slice (Cloud TPU VM or GKE); anything else is a single process.

    A process that does not find the others prints one line and ends with exit code 2, where jax
    would abort.

    Args:
      coordinator: host:port, on process 0's host.
      processes: number of processes.
      process: number of this one, from 0. The three go together.
      timeout_s: time to wait for the others.
      heartbeat_s: time after which a silent process counts as dead.

    Raises:
      UsageError: only some of the three are given, or they do not fit together.
    """
    if not jax.distributed.is_initialized():
        if any(value is not None for value in (coordinator, processes, process)):
            where = _checked_address(coordinator, processes, process)
            _initialize(timeout_s, heartbeat_s, cluster_detection_method="deactivate", **where)
        elif _on_slurm():
            _initialize(timeout_s, heartbeat_s, cluster_detection_method="slurm")
        elif cloud_tpu_init.running_in_cloud_tpu_vm and (
            os.environ.get("JAX_PLATFORMS") or "tpu"
        ).startswith("tpu"):
            _initialize_on_tpu(timeout_s, heartbeat_s)
    if client() is not None:
        watch()


def check(
    *, processes: int | None = None, devices: int | None = None, timeout_s: float = 300
) -> None:
    """Initialize the devices, wait for the other processes, and print the hosts and devices.

    Args:
      processes, devices: number that must be there in all; None accepts any.
      timeout_s: time to wait for the other processes' devices.

    Raises:
      UsageError: a process or device is missing, or one host has fewer devices than the rest.
    """
    if client() is not None:
        _check_hosts(processes, devices, timeout_s)
    elif devices is not None and jax.device_count() != devices:
        raise UsageError(
            f"--devices is {devices}, but {jax.device_count()} are there "
            f"({jax.default_backend()}), in one process"
        )


def _checked_address(
    coordinator: str | None, processes: int | None, process: int | None
) -> dict[str, Any]:
    """Return jax's arguments for an address that the user gave. Raises UsageError."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    if coordinator is None or processes is None or process is None:
        missing = next(name for name, value in given.items() if value is None)
        raise UsageError(f"{', '.join(given)} go together; {missing} is missing")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"--coordinator is {coordinator!r}; give process 0's host and a free port there, "
            "as in 10.0.0.1:8476"
        )
    if processes < 1 or not 0 <= process < processes:
        raise UsageError(
            f"--process-id is {process} of --processes {processes}; processes count from 0"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }


def _on_slurm() -> bool:
    """Return whether this is one of several tasks of a SLURM step (`srun`)."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _initialize_on_tpu(timeout_s: float, heartbeat_s: int) -> None:
    try:
        _initialize(timeout_s, heartbeat_s)
    except ValueError as error:
        # A TPU outside Cloud TPU VMs and GKE: a single host, with nobody to join.
        if "coordinator_address" not in str(error):
            raise


def _initialize(timeout_s: float, heartbeat_s: int, **where: Any) -> None:
    joined = threading.Event()
    threading.Thread(target=_exit_unless, args=(joined, timeout_s), daemon=True).start()
    try:
        # When jax gives up it aborts with a stack trace, so it must wait longer than we do.
        jax.distributed.initialize(
            initialization_timeout=int(timeout_s) + 60,
            heartbeat_timeout_seconds=heartbeat_s,
            **where,
        )
    finally:
        joined.set()


def _exit_unless(joined: threading.Event, timeout_s: float) -> None:
    """End the process with one line when the others are not found in time."""
    if joined.wait(timeout_s):
        return
    state = jax_distributed.global_state
    address, process = state.coordinator_address, state.process_id
    if address is None:
        reason = "the other processes' addresses could not be found"
    elif process == 0:
        reason = f"not all of the {state.num_processes} processes have come to {address}"
    elif _reaches(address):
        reason = (
            f"process 0 is at {address}, but not all of the {state.num_processes} processes "
            "have come"
        )
    else:
        reason = f"process {process} cannot reach process 0 at {address}"
    print(
        f"cotjax: {reason} in {timeout_s:g} s; check that every process runs with the same "
        "coordinator and number of processes, and that the network lets them reach that port",
        file=sys.stderr,
    )
    exit_now(UsageError.exit_code)


def _reaches(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def _check_hosts(processes: int | None, devices: int | None, timeout_s: float) -> None:
    own = jax.local_devices()
    host = {"host": socket.gethostname(), "devices": len(own), "kind": own[0].device_kind}
    hosts = _all_hosts(host, timeout_s)
    if first():
        for process, other in enumerate(hosts):
            print(
                f"process {process} of {len(hosts)} on {other['host']}: "
                f"{other['devices']} x {other['kind']}",
                flush=True,
            )
    on_slurm = _on_slurm()
    tasks = int(os.environ.get("SLURM_NTASKS", "0")) if on_slurm else 0
    expected = processes or tasks or len(hosts)
    if len(hosts) != expected:
        raise UsageError(f"{expected} processes were expected, {len(hosts)} are there")
    if devices is not None and jax.device_count() != devices:
        raise UsageError(
            f"--devices is {devices}, but the {len(hosts)} processes have {jax.device_count()}"
        )
    usual, _ = Counter(other["devices"] for other in hosts).most_common(1)[0]
    for process, other in enumerate(hosts):
        if other["devices"] != usual:
            raise UsageError(
                f"process {process} on {other['host']} has {other['devices']} devices, the others "
                f"have {usual}; check that host, or leave it out"
            )
    if on_slurm and own[0].platform == "gpu":
        _check_slurm_gpus(len(own), sum(other["host"] == host["host"] for other in hosts))


def _all_hosts(host: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Return what each process says of its host, by process."""
    coordinator = client()
    coordinator.key_value_set(
        f"cotjax/host/{own_process()}", json.dumps(host), allow_overwrite=True
    )
    coordinator.wait_at_barrier(unique_key("barrier/hosts"), int(timeout_s * 1000))
    return [
        json.loads(coordinator.blocking_key_value_get(f"cotjax/host/{process}", DAY_MS))
        for process in range(count())
    ]


def _check_slurm_gpus(own: int, tasks: int) -> None:
    """Raise UsageError when this host's tasks, of `own` GPUs each, see fewer than SLURM gave."""
    given = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    if tasks * own < given:
        raise UsageError(
            f"SLURM gave {given} GPUs on {socket.gethostname()}, but its {tasks} task(s) see "
            f"{tasks * own}; run one task per GPU, or let one task see all of them with "
            f"JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(given)))}"
        )
