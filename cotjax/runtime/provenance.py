"""The code that a run is made by, as every checkpoint and the study's run.json record it."""

from __future__ import annotations

import importlib.metadata
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "alfworld",
)
# Those of other worlds, which may not be installed.
_OPTIONAL = ("scienceworld", "bfcl-eval")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, where they are installed."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@lru_cache
def git_revision() -> str | None:
    """Return the commit of this package's checkout, with "-dirty" when files differ from it.

    None when the package is installed without a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # installed, perhaps inside some other repository
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]  # no tags: the bare commit
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
