"""What a bundle is for: extras, requirements of the checkout, the machine, and jax's packages."""

import platform
import sys
import sysconfig
import tomllib
from pathlib import Path

from files import die

ROOT = Path(__file__).resolve().parents[2]
ACCELERATORS = ("cpu", "cuda12", "cuda13", "tpu")
# What jax brings for itself. The other packages of a bundle are needed beside any jax.
_JAX = ("jax", "jaxlib", "libtpu")
JAX_PREFIXES = ("jax-cuda", "nvidia-")


def plain(name: str) -> str:
    """Return a package's name as the index compares names."""
    return name.lower().replace("_", "-").replace(".", "-")


def of_jax(name: str) -> bool:
    """Return whether a package is jax's, or its accelerator's."""
    return name in _JAX or name.startswith(JAX_PREFIXES)


def split_extras(text: str) -> tuple[str, list[str]]:
    """Return the accelerator and the other extras of "cuda13,wandb"."""
    words = {word for word in text.split(",") if word}
    accelerators = sorted(words & set(ACCELERATORS))
    if len(accelerators) != 1:
        die(f"--extra is {text!r}; give one of {', '.join(ACCELERATORS)}, then others after commas")
    return accelerators[0], sorted(words - set(accelerators))


def joined_extras(accelerator: str, others: list[str]) -> list[str]:
    """Return the extras of pyproject.toml; "cpu" is none."""
    return others if accelerator == "cpu" else [accelerator, *others]


def requirements(extras: list[str]) -> list[str]:
    """Return the requirements of this checkout with these extras, and those of its own build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [text for line in lines if (text := line.partition("#")[0].strip())]
    known = project["project"].get("optional-dependencies", {})
    for extra in extras:
        if extra not in known:
            die(f"pyproject.toml has no extra {extra!r}; it has {', '.join(known)}")
        asked += known[extra]
    # An editable install builds the project, for which pip installs these.
    return asked + project["build-system"]["requires"]


def machine() -> dict[str, str]:
    """Return what wheels depend on, of this Python's machine."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": sysconfig.get_platform(),
        "glibc": platform.libc_ver()[1],
    }
