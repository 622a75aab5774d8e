"""Compiled programs, kept on disk for the next start.

    <user's cache folder>/cotjax/jax-0.10.2-jaxlib-0.10.2-x86_64-5d1c0a7b93e2/

The folder's name holds the versions of jax and jaxlib and a hash of the CPU's model and features:
machine code of one CPU may not run on another, and jax's own keys do not tell CPUs apart. They do
tell everything else: the program, the compiler's options, and an accelerator's kind and driver.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import warnings
import zlib
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

FOLDER, SIZE, LEAST_SECONDS, ENABLED = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_ENABLE_COMPILATION_CACHE",
)
"""jax's own variables. A value that the user set stays."""

# Beyond this jax drops the programs that were not used for longest. With any limit, and only then,
# it locks the folder while it reads and writes, so several processes may share it.
_MOST_BYTES = 4 << 30
_LEAST_FREE_BYTES = 512 << 20
# The lines of /proc/cpuinfo that say which instructions a CPU has (x86, then ARM).
_CPU_LINES = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)
_CPU_INFO = Path("/proc/cpuinfo")


def keep_compiled(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Let jax keep compiled programs in the user's cache folder. Call it before jax is imported.

    A folder that the user gave (JAX_COMPILATION_CACHE_DIR) wins, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Damaged entries are removed.

    Returns: None, or a sentence that says why nothing is kept.
    """
    off = environ.get(ENABLED, "1").lower() in ("0", "false", "f", "no", "n", "off")
    if off or FOLDER in environ or "jax" in sys.modules:
        return None
    folder = _cache_home(environ) / "cotjax" / folder_name()
    try:
        _prepare(folder)
    except (OSError, _NotKept) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return (
            f"compiled programs are not kept for the next start: {folder.name}: {reason}; "
            f"set {FOLDER} to another folder, or {ENABLED}=false"
        )
    environ[FOLDER] = str(folder)
    environ.setdefault(SIZE, str(_MOST_BYTES))
    environ.setdefault(LEAST_SECONDS, "0.2")
    # An entry that cannot be read or written costs a compilation, not a line for each program.
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
    return None


def folder_name(cpu_info: Path = _CPU_INFO) -> str:
    """Return the name of the folder: versions of jax and jaxlib, and what this CPU is."""
    versions = (f"{name}-{importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    cpu = hashlib.sha256(_cpu(cpu_info).encode()).hexdigest()[:12]
    return "-".join((*versions, platform.machine() or "cpu", cpu))


def _cpu(cpu_info: Path) -> str:
    """Return a text that differs between CPUs of other features; of unknown ones, between hosts."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    known = {line for line in lines if line.partition(":")[0].strip() in _CPU_LINES}
    return "\n".join(sorted(known)) or f"{platform.node()} {platform.platform()}"


def _cache_home(environ: MutableMapping[str, str]) -> Path:
    given = Path(environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given
    return Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser()


class _NotKept(Exception):
    """Why a folder cannot be used."""


def _prepare(folder: Path) -> None:
    """Make the folder and remove its damaged entries. Raises OSError or _NotKept."""
    if importlib.util.find_spec("filelock") is None:
        raise _NotKept("the package filelock is not installed")
    if not folder.is_absolute():
        raise _NotKept("there is no home folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Its entries are executed, so nobody else may be able to write them.
    status = folder.stat()
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise _NotKept("another user can write there")
    if shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
        raise _NotKept(f"less than {_LEAST_FREE_BYTES >> 20} MiB of the disk are free")
    probe = folder / f".writable.{os.getpid()}"
    probe.write_bytes(b"1")
    probe.unlink()
    _remove_damaged(folder)


def _remove_damaged(folder: Path) -> None:
    """Remove entries that a killed process or a full disk left incomplete.

    jax would compile their programs again at every start and never replace them, and without the
    time of an entry's last use it could not write any other. Only entries newer than the last check
    are read.
    """
    import filelock

    checked = folder / ".checked"
    # jax holds the same lock while it writes.
    with suppress(filelock.Timeout), filelock.FileLock(folder / ".lockfile", timeout=10):
        since = checked.stat().st_mtime - 5 if checked.exists() else 0.0
        checked.touch()
        for entry in folder.glob("*-cache"):
            used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
            new = entry.stat().st_mtime >= since
            if not used.exists() or (new and not _whole(entry.read_bytes())):
                entry.unlink()
                used.unlink(missing_ok=True)


def _whole(entry: bytes) -> bool:
    """Return whether an entry can be decompressed; of an unknown compression, whether it is there.

    jax compresses with zlib, or with zstandard where that is installed.
    """
    if entry[:1] != b"\x78":
        return bool(entry.strip(b"\0"))
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True
