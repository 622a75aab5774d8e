"""Check the files of a bundle, and split it into the parts of one tar file.

    manifest.json           what the bundle holds; "files": path -> bytes and SHA-256
    bundle.part-000.tar, …  instead of them: one tar file, cut where a part is full
    parts.json              "parts": name, bytes, SHA-256 of each; SHA-256 of the manifest within

A manifest is written after the files that it lists, so an interrupted command leaves none.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

FORMAT = 1
TOPS = ("wheels", "base", "games")
_PART = "bundle.part-{:03d}.tar"
_CHUNK_BYTES = 1 << 20


def die(message: str) -> NoReturn:
    """Print one line and end with the launchers' exit code for wrong use."""
    print(f"bundle: {message}", file=sys.stderr)
    sys.exit(2)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file of a bundle."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        die(f"{file} cannot be read ({error}); copy the bundle again")
    if read.get("format", FORMAT) != FORMAT:
        die(
            f"{file} has format {read['format']}, this checkout reads {FORMAT}; update the checkout"
        )
    return read


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write an object into a file, which appears whole."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def check(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """End with one line unless a folder has all files, whole.

    files: path in the folder -> "bytes" and "sha256".
    """
    # Sizes first: what was not copied is named at once.
    missing = [name for name in files if not (folder / name).is_file()]
    cut = [name for name in files if name not in missing and _differs(folder / name, files[name])]
    broken = cut or [] if missing else cut or _of_other_content(folder, files)
    wrong = missing + broken
    if not wrong:
        return
    kind = "is missing" if missing else "is broken (its size or sha256 is not that of the manifest)"
    more = f", and {len(wrong) - 1} more files are missing or broken" if len(wrong) > 1 else ""
    die(f"{folder / wrong[0]} {kind}{more}; copy it again from where the bundle was made")


def _differs(file: Path, entry: dict[str, Any]) -> bool:
    return file.stat().st_size != entry["bytes"]


def _of_other_content(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, entry in files.items() if sha256_of(folder / name) != entry["sha256"]]


def opened(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle, joined first where it comes in parts."""
    join(folder)
    return read_json(folder / "manifest.json")


def remove_parts(folder: Path) -> None:
    """Remove the parts of a bundle, and what lists them."""
    (folder / "parts.json").unlink(missing_ok=True)
    for file in folder.glob(_PART.replace("{:03d}", "*")):
        file.unlink()


class _Writer:
    """A stream that is written as files of at most `size` bytes, which it lists."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.parts: list[dict[str, Any]] = []
        self.file: BinaryIO | None = None
        self.digest, self.left = hashlib.sha256(), size

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while len(view):
            if self.file is None:
                self.file = (self.folder / _PART.format(len(self.parts))).open("wb")
                self.digest, self.left = hashlib.sha256(), self.size
            head, view = view[: self.left], view[self.left :]
            self.file.write(head)
            self.digest.update(head)
            self.left -= len(head)
            if self.left == 0:
                self.close()
        return len(data)

    def close(self) -> None:
        if self.file is None:
            return
        self.file.close()
        self.file = None
        entry = {"file": _PART.format(len(self.parts)), "bytes": self.size - self.left}
        self.parts.append(entry | {"sha256": self.digest.hexdigest()})


def split(folder: Path, size: int) -> int:
    """Turn the files of a bundle into parts of at most `size` bytes; return their number."""
    manifest = read_json(folder / "manifest.json")
    remove_parts(folder)
    stream = _Writer(folder, size)
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore
        for name in (*manifest["files"], "manifest.json"):
            entry = tarfile.TarInfo(name)
            entry.size = (folder / name).stat().st_size
            with (folder / name).open("rb") as content:
                archive.addfile(entry, content)
    stream.close()
    digest = sha256_of(folder / "manifest.json")
    about = {"format": FORMAT, "python": manifest["about"]["python"], "manifest_sha256": digest}
    write_json(folder / "parts.json", about | {"parts": stream.parts})
    # The manifest goes first: with parts.json and without a manifest, a folder is not joined.
    (folder / "manifest.json").unlink()
    for top in TOPS:
        shutil.rmtree(folder / top, ignore_errors=True)
    return len(stream.parts)


class _Reader:
    """The parts of a bundle, read as one stream."""

    def __init__(self, files: list[Path]):
        self.files = files
        self.file: BinaryIO | None = None

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (self.file or self.files):
            self.file = self.file or self.files.pop(0).open("rb")
            more = self.file.read(size - len(data))
            data += more
            if not more:
                self.file.close()
                self.file = None
        return data

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def join(folder: Path) -> None:
    """Unpack a bundle's parts beside them, unless that is done or the bundle was never split."""
    manifest, index = folder / "manifest.json", folder / "parts.json"
    if not index.exists():
        if not manifest.exists():
            die(f"{folder} has no manifest.json and no parts.json; name a finished bundle")
        return
    listed = read_json(index)
    if manifest.exists() and sha256_of(manifest) == listed["manifest_sha256"]:
        return
    parts = {part["file"]: part for part in listed["parts"]}
    check(folder, parts)
    print(f"Joining the {len(parts)} parts of {folder}", flush=True)
    try:
        manifest.unlink(missing_ok=True)
        with (
            contextlib.closing(_Reader([folder / name for name in parts])) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,  # type: ignore
        ):
            for entry in archive:
                _unpack(archive, entry, folder)
    except OSError as error:
        die(f"{folder}: its parts cannot be joined there ({error.strerror}); free or name a folder")


def _unpack(archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    """Write one file of the archive into the folder, where it appears whole."""
    name = PurePosixPath(entry.name)
    content = archive.extractfile(entry)
    if content is None or name.is_absolute() or ".." in name.parts:
        die(f"{folder}: its parts hold {entry.name!r}, which is no file of a bundle")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        shutil.copyfileobj(content, file, _CHUNK_BYTES)
    os.replace(partial, target)
