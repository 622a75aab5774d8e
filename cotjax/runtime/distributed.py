"""What the processes of one run tell each other, and how they wait for each other.

    with in_turn("games"):           # process 0 makes the files, then the others read them
        games = prepare_games(config)
    saves = from_first("saves", f)   # process 0 calls f, and all get what it returns
    check_same("config", settings)   # fail in every process unless all have the same
    barrier("played")                # wait until all processes are here

Messages go through the coordinator, a small service in process 0, and touch no device, so a process
may wait there for hours. When a process dies, jax ends the others within the heartbeat's timeout.
A single process waits for no other, and all of this returns at once. See `joining` for how the
processes find each other and `stopping` for how one ends them all.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax._src import distributed as jax_distributed  # the coordinator's client has no public name

from cotjax.errors import UsageError
from cotjax.runtime.settings import first_difference

# A wait for other processes ends by itself only when one dies or fails, and that ends it at once.
DAY_MS = 24 * 3600 * 1000
_FOLDER_S = 30.0  # time that a network file system may take to show another host's new file
_uses: Counter[str] = Counter()  # how often this process has used each name: see `unique_key`


def own_process() -> int:
    """Return this process's number, from 0.

    Unlike jax.process_index it initializes no devices, which needs every process to be well.
    """
    return jax_distributed.global_state.process_id


def count() -> int:
    """Return the number of processes."""
    return jax_distributed.global_state.num_processes


def first() -> bool:
    """Return whether this is process 0, or the only one."""
    return own_process() == 0


def several() -> bool:
    """Return whether there are other processes."""
    return count() > 1


def share(index: int) -> bool:
    """Return whether item `index` of a list that the processes divide among them is this one's."""
    return index % count() == own_process()


def client() -> Any:
    """Return the coordinator's client; None where there is no other process."""
    return jax_distributed.global_state.client


def unique_key(name: str) -> str:
    """Return a key for this use of `name`: every process counts the uses in the same way."""
    _uses[name] += 1
    return f"cotjax/{name}/{_uses[name]}"


def barrier(name: str) -> None:
    """Return when every process has called this."""
    if several():
        client().wait_at_barrier(unique_key(f"barrier/{name}"), DAY_MS)


@contextmanager
def in_turn(name: str) -> Iterator[None]:
    """Run the block in process 0, then in the others at once, which find its files written.

    The block must make no array that is on other processes' devices.
    """
    if not several():
        yield
        return
    key = unique_key(f"done/{name}")
    if first():
        yield
        client().key_value_set(key, "done")
    else:
        client().blocking_key_value_get(key, DAY_MS)
        yield


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returns (JSON) in process 0, the only one that calls it."""
    if not several():
        return make()
    key = unique_key(f"from first/{name}")
    if first():
        client().key_value_set(key, json.dumps(make()))
    return json.loads(client().blocking_key_value_get(key, DAY_MS))


def check_same(what: str, value: Mapping[str, Any]) -> None:
    """Raise UsageError, naming the first difference, unless `value` (JSON) equals process 0's."""
    if not several():
        return
    key = unique_key(f"same/{what}")
    mine = json.loads(json.dumps(dict(value)))
    if first():
        client().key_value_set(key, json.dumps(mine))
    theirs = json.loads(client().blocking_key_value_get(key, DAY_MS))
    if differs := first_difference(theirs, mine):
        name, there, own = differs
        raise UsageError(
            f"{what}: {name} is {own!r} on host {socket.gethostname()} (process {own_process()}), "
            f"{there!r} in process 0; give every process the same command and the same code"
        )


def check_folder(folder: Path) -> None:
    """Raise UsageError, naming the host, unless this process sees what process 0 writes there."""
    if not several():
        return
    key = unique_key("folder")
    token = folder / ".seen-by-all-hosts"
    if first():
        word = secrets.token_hex(8)
        token.write_text(word)
        client().key_value_set(key, json.dumps({"word": word, "host": socket.gethostname()}))
    written = json.loads(client().blocking_key_value_get(key, DAY_MS))
    until = time.monotonic() + _FOLDER_S
    while not _contains(token, written["word"]):
        if time.monotonic() > until:
            raise UsageError(
                f"{folder}: host {socket.gethostname()} (process {own_process()}) does not see "
                f"what host {written['host']} wrote there; name a folder on a file system that "
                "all hosts share (NFS, Filestore) with --out"
            )
        time.sleep(0.2)
    barrier("folder")
    if first():
        token.unlink()


def _contains(file: Path, word: str) -> bool:
    try:
        return file.read_text() == word
    except OSError:
        return False
