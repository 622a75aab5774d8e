"""ALFWorld's published games, by the package's own downloader.

`alfworld-download` takes some 2 GB from the project's releases on github.com, and resumes. Here it
is run on a folder, and what it left there is counted.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cotjax.envs.alfworld.env import find_games
from cotjax.errors import DataError, UsageError

# Solvable games of the release that the downloader takes: split -> number.
PUBLISHED = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
_SERVER = "https://github.com"


def fetch(out: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Download ALFWorld's games to `out`, or complete them; return the playable ones of each split.

    `say` gets a line before the download begins. The downloader's own progress goes to the
    terminal.

    Raises:
      UsageError: the package is not installed, or its server cannot be reached.
      DataError: fewer games arrived than were published.
    """
    found = _found(out)
    if _complete(found):
        return found
    command = Path(sysconfig.get_path("scripts")) / "alfworld-download"
    if not command.is_file():
        raise UsageError(f"{command}: no such command; install it: pip install alfworld")
    _check_network(out)
    out.mkdir(parents=True, exist_ok=True)
    say(f"{command.name} downloads some 2 GB to {out}; it can be interrupted")
    # The package makes its default folder on import: keep that within `out`, too.
    environment = os.environ | {"ALFWORLD_DATA": str(out)}
    code = subprocess.run([command, "--data-dir", out], env=environment).returncode
    if code:
        raise DataError(
            f"{command.name} ended with code {code}, as it says above; run this again to go on"
        )
    found = _found(out)
    if not _complete(found):
        lacking = ", ".join(
            f"{found[split]} of {number} in {split}"
            for split, number in PUBLISHED.items()
            if found[split] < number
        )
        raise DataError(f"{out}: games are missing after the download ({lacking}); run it again")
    return found


def _check_network(out: Path) -> None:
    """Raise UsageError unless the server that the downloader takes the games from answers."""
    try:
        with urllib.request.urlopen(_SERVER, timeout=20):
            pass
    except OSError as error:
        why = getattr(error, "reason", error)
        raise UsageError(
            f"{_SERVER} cannot be reached from this machine ({why}); run this command where it "
            f"can, and bring the folder json_2.1.1 to {out}"
        ) from None


def _found(out: Path) -> dict[str, int]:
    """Return the playable games of each published split."""
    counts = {}
    for split in PUBLISHED:
        try:
            counts[split] = len(find_games(out, split))
        except (UsageError, DataError):
            counts[split] = 0
    return counts


def _complete(found: dict[str, int]) -> bool:
    return all(found[split] >= number for split, number in PUBLISHED.items())
