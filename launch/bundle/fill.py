"""Fill a bundle with wheels and write its manifest."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from files import FORMAT, TOPS, die, join, read_json, remove_parts, sha256_of, split, write_json
from needs import (
    JAX_PREFIXES,
    ROOT,
    joined_extras,
    machine,
    of_jax,
    plain,
    requirements,
    split_extras,
)

_BATCH = 8  # packages of one call of pip: what a killed build fetches again at most
_AGAIN = "the same command resumes"


def fetch(out: Path, extra: str, with_jax: bool) -> None:
    """Download or build every wheel into a bundle. A wheel that is there and whole is kept."""
    accelerator, others = split_extras(extra)
    asked = requirements(joined_extras(accelerator, others))
    about = machine() | {"accelerator": accelerator, "extras": others, "jax": with_jax}
    about |= {"requirements": asked}
    if (out / "parts.json").exists():
        join(out)
    lock = _started(out, about)
    if lock is None:
        print(f"Resolving {len(asked)} requirements", flush=True)
        lock = {"about": about, "packages": _resolve(asked, with_jax)}
        write_json(out / ".work" / "lock.json", lock)
    packages = lock["packages"]
    unasked = [name for name in packages if name == "torch" or name.startswith(JAX_PREFIXES)]
    if unasked and accelerator == "cpu" and not others:
        die(f"a bundle for cpu would hold {', '.join(unasked)}, which nothing asks for")
    wheels = out / "wheels"
    wheels.mkdir(exist_ok=True)
    missing = [name for name, package in packages.items() if not _is_there(wheels, package)]
    kept = {package["file"] for name, package in packages.items() if name not in missing}
    for file in wheels.iterdir():
        if file.name not in kept:
            file.unlink()
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        print(f"  {start + len(batch)} of {len(missing)}: {', '.join(batch)}", flush=True)
        _fetch_batch(out, {name: packages[name] for name in batch})
        write_json(out / ".work" / "lock.json", lock)


def _started(out: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return the packages that an earlier build for the same request chose, if there is one."""
    for file in (out / ".work" / "lock.json", out / "manifest.json"):
        if file.exists() and (read := read_json(file))["about"] == about:
            lock = {"about": about, "packages": read["packages"]}
            write_json(out / ".work" / "lock.json", lock)
            return lock
    return None


def _resolve(asked: list[str], with_jax: bool) -> dict[str, dict[str, Any]]:
    """Return name -> version, file and SHA-256 of every package that pip would install.

    What is only to be had as source has no file and no hash until it is built.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        _pip("install", "--dry-run", "--ignore-installed", "--report", str(report), *asked)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = {}
    for item in items:
        name = plain(item["metadata"]["name"])
        if of_jax(name) and not with_jax:
            continue
        # Addresses may hold a password for a private index: only the file's name is kept.
        file = unquote(urlsplit(item["download_info"]["url"]).path).rpartition("/")[2]
        wheel = file.endswith(".whl")
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        packages[name] = {
            "version": item["metadata"]["version"],
            "file": file if wheel else None,
            "sha256": hashes.get("sha256") if wheel else None,
            "built": not wheel,
        }
    return dict(sorted(packages.items()))


def _is_there(wheels: Path, package: dict[str, Any]) -> bool:
    if package["file"] is None or package["sha256"] is None:
        return False
    file = wheels / package["file"]
    return file.is_file() and sha256_of(file) == package["sha256"]


def _fetch_batch(out: Path, packages: dict[str, dict[str, Any]]) -> None:
    """Have pip download or build packages, and write their files and hashes into `packages`."""
    scratch = out / ".work" / "fetch"
    shutil.rmtree(scratch, ignore_errors=True)
    pinned = [f"{name}=={package['version']}" for name, package in packages.items()]
    _pip("wheel", "--no-deps", "--wheel-dir", str(scratch), *pinned)
    for file in scratch.iterdir():
        package = packages[plain(file.name.partition("-")[0])]
        digest = sha256_of(file)
        if not package["built"] and package["sha256"] not in (None, digest):
            die(f"{file.name} changed while the bundle was made; remove {out / '.work'}, try again")
        package |= {"file": file.name, "sha256": digest}
        os.replace(file, out / "wheels" / file.name)


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--disable-pip-version-check", "--quiet"]
    if subprocess.run([*command, *words[1:]]).returncode != 0:
        die(f"pip failed; its reason is above. When it is solved, {_AGAIN}")


def seal(out: Path, part_bytes: int | None) -> None:
    """Write the manifest of a filled bundle; with `part_bytes`, turn the bundle into parts."""
    lock = read_json(out / ".work" / "lock.json")
    paths = [path for top in TOPS for path in sorted((out / top).rglob("*")) if path.is_file()]
    files = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
    for name, package in lock["packages"].items():
        entry = files.get(f"wheels/{package['file']}")
        if entry is None or entry["sha256"] != package["sha256"]:
            die(f"{out}: the wheel of {name} is missing or broken; {_AGAIN}")
    remove_parts(out)
    manifest = {"format": FORMAT, "about": lock["about"], "cotjax": _commit()}
    write_json(out / "manifest.json", manifest | {"packages": lock["packages"], "files": files})
    size = sum(entry["bytes"] for entry in files.values())
    parts = "" if part_bytes is None else f", in {split(out, part_bytes)} parts"
    heads = {PurePosixPath(name).parts for name in files}
    held = sorted({"/".join(head[:2]) if head[0] == "base" else head[0] for head in heads})
    built = [name for name, package in lock["packages"].items() if package["built"]]
    print(f"Built from source: {', '.join(built) or 'nothing'}")
    print(f"{out} holds {', '.join(held)}: {len(files)} files, {size / 1e6:,.0f} MB{parts}")


def _commit() -> dict[str, Any]:
    """Return the commit of this checkout, and whether files differ from it; None without git."""
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(FileNotFoundError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode == 0:
            clean = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
            return {"commit": head.stdout.strip(), "changed": clean.returncode != 0}
    return {"commit": None, "changed": None}
