"""How XLA writes a CPU's kernels. Imports no jax, which reads the flag at its start."""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path

FLAG = "--xla_cpu_use_fusion_emitters"


def with_older_emitters(flags: str) -> str:
    """Return XLA_FLAGS by which kernels are written as before there were fusion emitters.

    `flags` that name these emitters stay as they are. So do they where XLA does not know the flag:
    it would end the process. What it knows, its library names.
    """
    library = Path(importlib.util.find_spec("jaxlib").origin).with_name("libjax_common.so")
    if FLAG in flags or not library.exists():
        return flags
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as names:
        known = names.find(FLAG.removeprefix("--").encode()) >= 0
    return f"{flags} {FLAG}=false".strip() if known else flags
