"""How XLA compiles for a CPU in tests. Imports no jax, which reads the flags at its start."""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path

# The older emitters of kernels take a third of the time of the fusion emitters. Code that is cut
# into parts, to be compiled by many threads, takes longer in all.
QUICK = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}


def quick(flags: str) -> str:
    """Return XLA_FLAGS with QUICK added; what `flags` set stays.

    XLA ends the process at a flag that it does not know. What it knows, its library names.
    """
    library = Path(importlib.util.find_spec("jaxlib").origin).with_name("libjax_common.so")
    if not library.exists():
        return flags
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as names:
        known = {name for name in QUICK if name not in flags and names.find(name.encode()) >= 0}
    return " ".join([flags, *(f"--{name}={QUICK[name]}" for name in sorted(known))]).strip()
