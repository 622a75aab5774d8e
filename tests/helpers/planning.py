"""`cotjax plan` as the tests call it.

The TPU compiler is in the environment, or next to it where launch/test.sh installs it.
"""

import importlib.util
import os
import sys
from pathlib import Path

import cotjax

CONFIGS = Path(cotjax.__file__).parents[1] / "configs"
# Config -> the arguments that name its slice.
SHIPPED = {
    "qwen3_4b_v5e_4x4": ["v5e:4x4"],
    "qwen3_8b_v5e_8x8": ["v5e:8x8"],
    "qwen3_8b_v6e_4x4": ["v6e:4x4"],
    "qwen3_14b_v5p_4x4x4": ["v5p:4x4x4"],
    "llama3_8b_v5p_2x2x4": ["v5p:2x2x4"],
    "qwen3_32b_two_v5e_16x16": ["v5e:16x16", "--slices", "2"],
}


def compiler() -> Path | None:
    """Return the path of the TPU compiler, or None."""
    beside = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
    installed = importlib.util.find_spec("libtpu")
    return (
        Path(installed.origin).parent / "libtpu.so"
        if installed
        else beside
        if beside.exists()
        else None
    )


def environment(compiler_path: Path | None) -> dict[str, str]:
    """Return this process's environment with that compiler, or none, and without a cache.

    The compiler optimizes as it does for a user.
    """
    own = ("TPU_LIBRARY_PATH", "JAX_COMPILATION_CACHE_DIR")
    own += ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    without = {name: value for name, value in os.environ.items() if name not in own}
    return without | ({"TPU_LIBRARY_PATH": str(compiler_path)} if compiler_path else {})


def command(*arguments: str) -> list[str]:
    """Return the command `cotjax plan` with these arguments."""
    return [sys.executable, "-m", "cotjax.cli", "plan", *arguments]


def shipped(name: str) -> list[str]:
    """Return the arguments that plan a shipped config on its slice."""
    return ["--config", str(CONFIGS / f"{name}.py"), "--topology", *SHIPPED[name]]
