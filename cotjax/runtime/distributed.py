"""Several processes as one run: a TPU pod, GKE, SLURM, or processes that are told each other's address.

    join()                           # before any device is used; alone, it does nothing
    check(devices=32)                # the processes and devices are those expected
    with in_turn("games"):           # process 0 makes the files, then the others find them made
        games = prepare_games(config)
    rows = local_rows(sharding, 32)  # what of a batch of 32 this process feeds to its devices
    barrier("played")                # all have come this far
    stop_all("no such folder", 2)    # one cannot go on: every process prints why, and ends

What the processes tell each other goes through the coordinator, a small service in process 0, and touches no device: a process may
wait there for hours. When one dies, jax ends the others within `heartbeat_s`.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import cloud_tpu_init
from jax._src import distributed as jax_distributed  # the coordinator's client has no public name
from jax.sharding import NamedSharding

from cotjax.errors import CotjaxError, UsageError
from cotjax.runtime.settings import first_difference
from cotjax.runtime.terminal import visible

_DAY_MS = (
    24 * 3600 * 1000
)  # a wait whose end only a death or a failure bounds, and those end it at once
_FOLDER_S = 30.0  # how long a network file system may take to show another host's new file
_WATCH_S = 0.5
_GOODBYE_S = 5.0
_STOPPED = "cotjax/stopped"
_counts: Counter[str] = Counter()


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout_s: float = 300,
    heartbeat_s: int = 100,
) -> None:
    """Join the other processes of this run. To be called before any device is used; called again, it does nothing.

    `coordinator` (host:port, on process 0's host), `processes` (how many) and `process` (which one, from 0) go together. Without them
    SLURM's tasks and the hosts of a TPU slice (Cloud TPU VM or GKE) are found by jax; anything else is one process. `timeout_s`: how
    long to wait for the others. `heartbeat_s`: how long a silent process counts as alive.

    Raises UsageError when the three do not go together. A process that does not find the others prints one line and ends with exit
    code 2: jax would end it without one.
    """
    named = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    if not jax.distributed.is_initialized():
        if any(value is not None for value in named.values()):
            _check_named(named)
            where = {
                "coordinator_address": coordinator,
                "num_processes": processes,
                "process_id": process,
            }
            _join(timeout_s, heartbeat_s, cluster_detection_method="deactivate", **where)
        elif _on_slurm():
            _join(timeout_s, heartbeat_s, cluster_detection_method="slurm")
        elif cloud_tpu_init.running_in_cloud_tpu_vm and (
            os.environ.get("JAX_PLATFORMS") or "tpu"
        ).startswith("tpu"):
            _join_tpu(timeout_s, heartbeat_s)
    if _client() is not None:
        _watch()


def check(
    *, processes: int | None = None, devices: int | None = None, timeout_s: float = 300
) -> None:
    """Make the devices, wait until all processes have, and tell which there are. `processes`, `devices`: how many there must be in all.

    Raises UsageError when some are missing, or a process has others than the rest.
    """
    if _client() is not None:
        _check_seen(processes, devices, timeout_s)
    elif devices is not None and jax.device_count() != devices:
        raise UsageError(
            f"--devices is {devices}, but {jax.device_count()} are there ({jax.default_backend()}), in one process"
        )


def own_process() -> int:
    """Which process this is, from 0. Unlike jax.process_index it makes no devices, for which all processes would have to be well."""
    return jax_distributed.global_state.process_id


def first() -> bool:
    """Whether this is process 0, or the only one."""
    return own_process() == 0


def several() -> bool:
    """Whether other processes take part."""
    return jax_distributed.global_state.num_processes > 1


def share(index: int) -> bool:
    """Whether this process does number `index` of a list that the processes share out."""
    state = jax_distributed.global_state
    return index % state.num_processes == state.process_id


def count() -> int:
    """How many processes there are."""
    return jax_distributed.global_state.num_processes


def barrier(name: str) -> None:
    """Return when every process has come here."""
    if several():
        _client().wait_at_barrier(_key(f"barrier/{name}"), _DAY_MS)


@contextmanager
def in_turn(name: str) -> Iterator[None]:
    """Around work on files that finds what is done already: process 0 does it, then the others, all at once, find it done.

    It must make no array that lies on other processes' devices.
    """
    if not several():
        yield
        return
    key = _key(f"done/{name}")
    if first():
        yield
        _client().key_value_set(key, "done")
    else:
        _client().blocking_key_value_get(key, _DAY_MS)
        yield


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returns (JSON) in process 0, which alone calls it."""
    if not several():
        return make()
    key = _key(f"from first/{name}")
    if first():
        _client().key_value_set(key, json.dumps(make()))
    return json.loads(_client().blocking_key_value_get(key, _DAY_MS))


def check_folder(folder: Path) -> None:
    """Raise UsageError, naming the host, unless this process sees in `folder` what process 0 writes there."""
    if not several():
        return
    key = _key("folder")
    token = folder / ".seen-by-all-hosts"
    if first():
        word = secrets.token_hex(8)
        token.write_text(word)
        _client().key_value_set(key, json.dumps({"word": word, "host": socket.gethostname()}))
    written = json.loads(_client().blocking_key_value_get(key, _DAY_MS))
    until = time.monotonic() + _FOLDER_S
    while not _holds(token, written["word"]):
        if time.monotonic() > until:
            raise UsageError(
                f"{folder}: host {socket.gethostname()} (process {own_process()}) does not see what host {written['host']} wrote "
                "there; name a folder on a file system that all hosts share (NFS, Filestore) with --out"
            )
        time.sleep(0.2)
    barrier("folder")
    if first():
        token.unlink()


def check_same(what: str, value: Mapping[str, Any]) -> None:
    """Raise UsageError, naming the first setting that differs, unless `value` (JSON) is the same as process 0's."""
    if not several():
        return
    key = _key(f"same/{what}")
    if first():
        _client().key_value_set(key, json.dumps(dict(value)))
    mine, theirs = (
        json.loads(json.dumps(dict(value))),
        json.loads(_client().blocking_key_value_get(key, _DAY_MS)),
    )
    if differs := first_difference(theirs, mine):
        name, there, own = differs
        raise UsageError(
            f"{what}: {name} is {own!r} on host {socket.gethostname()} (process {own_process()}), {there!r} in process 0; give "
            "every process the same command and the same code"
        )


def stop_all(message: str, exit_code: int) -> None:
    """End every process of the run with this exit code; the others print the message. Alone, it does nothing and returns."""
    if not several():
        return
    client, process = _client(), own_process()
    stopped = {
        "message": message,
        "exit_code": exit_code,
        "process": process,
        "host": socket.gethostname(),
    }
    with suppress(jax.errors.JaxRuntimeError):  # the coordinator may be gone already
        client.key_value_set(f"{_STOPPED}/{process}", json.dumps(stopped), allow_overwrite=True)
        _see_off(client)
    if sys.exception() is not None and not isinstance(sys.exception(), CotjaxError):
        traceback.print_exc()  # nobody foresaw it, and nobody prints it after this
    _exit(exit_code)


# ---- a global batch


def local_rows(sharding: NamedSharding, batch: int) -> list[int]:
    """The rows, in order, of an array [batch, ...] that this process's devices hold. Processes may hold the same ones: those whose
    devices differ on another axis than the batch's.
    """
    indices = sharding.addressable_devices_indices_map((batch,)).values()
    return sorted({row for (rows,) in indices for row in range(*rows.indices(batch))})


def global_batch(
    own: Mapping[str, np.ndarray], sharding: NamedSharding, batch: int
) -> dict[str, jax.Array]:
    """Arrays [batch, ...] over all devices, of which each process gives its `local_rows` (in their order)."""
    place = {row: at for at, row in enumerate(local_rows(sharding, batch))}

    def as_global(x: np.ndarray) -> jax.Array:
        def piece(index: tuple[slice, ...]) -> np.ndarray:
            return x[[place[row] for row in range(*index[0].indices(batch))]][
                (slice(None), *index[1:])
            ]

        return jax.make_array_from_callback((batch, *x.shape[1:]), sharding, piece)

    return {name: as_global(x) for name, x in own.items()}


# ---- joining


def _check_named(named: dict[str, Any]) -> None:
    missing = [name for name, value in named.items() if value is None]
    if missing:
        raise UsageError(f"{', '.join(named)} go together; {missing[0]} is missing")
    address, processes, process = named.values()
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"--coordinator is {address!r}; give process 0's host and a free port there, as in 10.0.0.1:8476"
        )
    if processes < 1 or not 0 <= process < processes:
        raise UsageError(
            f"--process-id is {process} of --processes {processes}; processes count from 0"
        )


def _on_slurm() -> bool:
    """Whether this is one of several tasks of a SLURM step (`srun`)."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _join_tpu(timeout_s: float, heartbeat_s: int) -> None:
    try:
        _join(timeout_s, heartbeat_s)
    except ValueError as error:
        # A TPU that belongs to no Cloud TPU VM and no GKE node: one host, and nobody to join.
        if "coordinator_address" not in str(error):
            raise


def _join(timeout_s: float, heartbeat_s: int, **where: Any) -> None:
    joined = threading.Event()
    threading.Thread(target=_give_up, args=(joined, timeout_s), daemon=True).start()
    try:
        # It ends the process, with a stack trace, where it gives up itself: it must not be the first to do so.
        jax.distributed.initialize(
            initialization_timeout=int(timeout_s) + 60,
            heartbeat_timeout_seconds=heartbeat_s,
            **where,
        )
    finally:
        joined.set()


def _give_up(joined: threading.Event, timeout_s: float) -> None:
    if joined.wait(timeout_s):
        return
    state = jax_distributed.global_state
    address, process = state.coordinator_address, state.process_id
    if address is None:
        reason = "the other processes' addresses could not be found out"
    elif process == 0:
        reason = f"not all of the {state.num_processes} processes have come to {address}"
    elif _reaches(address):
        reason = f"process 0 is at {address}, but not all of the {state.num_processes} processes have come"
    else:
        reason = f"process {process} cannot reach process 0 at {address}"
    print(
        f"cotjax: {reason} in {timeout_s:g} s; check that every process runs, with the same coordinator and number of processes, and "
        "that the network lets them through to that port",
        file=sys.stderr,
    )
    _exit(UsageError.exit_code)


def _reaches(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def _check_seen(processes: int | None, devices: int | None, timeout_s: float) -> None:
    """Tell the processes and devices; raise UsageError when they are not those expected."""
    client, own = _client(), jax.local_devices()
    about = {"host": socket.gethostname(), "devices": len(own), "kind": own[0].device_kind}
    client.key_value_set(f"cotjax/host/{own_process()}", json.dumps(about), allow_overwrite=True)
    client.wait_at_barrier(_key("barrier/hosts"), int(timeout_s * 1000))
    hosts = [
        json.loads(client.blocking_key_value_get(f"cotjax/host/{i}", _DAY_MS))
        for i in range(count())
    ]
    if first():
        for process, host in enumerate(hosts):
            print(
                f"process {process} of {len(hosts)} on {host['host']}: {host['devices']} x {host['kind']}",
                flush=True,
            )
    expected = (
        processes or int(os.environ.get("SLURM_NTASKS", "0") if _on_slurm() else 0) or len(hosts)
    )
    if len(hosts) != expected:
        raise UsageError(f"{expected} processes were expected, {len(hosts)} are there")
    if devices is not None and jax.device_count() != devices:
        raise UsageError(
            f"--devices is {devices}, but the {len(hosts)} processes have {jax.device_count()}"
        )
    usual, _ = Counter(host["devices"] for host in hosts).most_common(1)[0]
    for process, host in enumerate(hosts):
        if host["devices"] != usual:
            raise UsageError(
                f"process {process} on {host['host']} has {host['devices']} devices, the others have {usual}; look at that host, or leave "
                "it out"
            )
    on_node, here = (
        int(os.environ.get("SLURM_GPUS_ON_NODE", "0")),
        sum(host["host"] == about["host"] for host in hosts),
    )
    if _on_slurm() and own[0].platform == "gpu" and here * len(own) < on_node:
        raise UsageError(
            f"SLURM gave {on_node} GPUs on {about['host']}, but its {here} task(s) see {here * len(own)}; run one task a GPU, or let one "
            f"task see all of them with JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(on_node)))}"
        )


# ---- stopping together


def _watch() -> None:
    """From now on, end this process when another has called stop_all."""
    if _counts["watch"]:
        return
    _counts["watch"] += 1
    over = threading.Event()
    atexit.register(over.set)
    threading.Thread(target=_look_for_stop, args=(over,), daemon=True).start()


def _look_for_stop(over: threading.Event) -> None:
    client, process = _client(), own_process()
    while not over.wait(_WATCH_S):
        try:
            found = [json.loads(value) for _, value in client.key_value_dir_get(f"{_STOPPED}/")]
            if not found or any(stopped["process"] == process for stopped in found):
                continue
            client.key_value_set(
                f"{_STOPPED}/{process}", json.dumps(found[0] | {"process": process})
            )
        except jax.errors.JaxRuntimeError:
            return  # the coordinator is gone: jax says so and ends this process
        print(
            f"cotjax: process {found[0]['process']} on {found[0]['host']} stopped: {visible(found[0]['message'])}",
            file=sys.stderr,
            flush=True,
        )
        with suppress(jax.errors.JaxRuntimeError):
            _see_off(client)
        _exit(found[0]["exit_code"])


def _see_off(client: Any) -> None:
    """In process 0, wait until the others have seen that the run stops: the coordinator ends with it."""
    until = time.monotonic() + _GOODBYE_S
    while (
        first()
        and len(client.key_value_dir_get(f"{_STOPPED}/")) < count()
        and time.monotonic() < until
    ):
        time.sleep(0.1)


def _exit(code: int) -> None:
    """End at once: an ordinary end would wait for the others at jax's own farewell."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _holds(file: Path, word: str) -> bool:
    try:
        return file.read_text() == word
    except OSError:
        return False


def _client() -> Any:
    return jax_distributed.global_state.client


def _key(name: str) -> str:
    """A name for this use of `name`: every process counts them alike."""
    _counts[name] += 1
    return f"cotjax/{name}/{_counts[name]}"
