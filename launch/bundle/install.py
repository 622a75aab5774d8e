"""Install cotjax from a bundle: its wheels alone, and jax of the machine where that fits."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from files import check, die, opened
from needs import ACCELERATORS, ROOT, joined_extras, machine, of_jax, plain, requirements


def install(folder: Path, extra: str, base_python: str) -> None:
    """Install cotjax into this Python's environment from a bundle, without an index.

    extra: what launch/setup.sh is asked for, "" for none. base_python: the Python that made this
    environment, and may have a jax of its own.
    """
    manifest = opened(folder)
    about = manifest["about"]
    _check_machine(folder, about)
    check(folder, manifest["files"])
    jax = _jax_of_machine(base_python, extra)
    extras = choose_extras(folder, about, extra, jax is not None)
    _check_versions(folder, manifest, extras, jax)
    packages = manifest["packages"]
    pins = {name: package["version"] for name, package in packages.items()}
    if jax is not None:
        pins = {name: version for name, version in pins.items() if not of_jax(name)}
        pins["jax"] = jax
        print(f"Using jax {jax} of {base_python}", flush=True)
    print(f"Installing from {folder}", flush=True)
    # No variable and no file of pip's configuration counts here: they are for an index.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={pins[name]}\n" for name in pins))
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        command += [
            "--progress-bar",
            "off",
            "--no-index",
            "--find-links",
            str(folder.resolve() / "wheels"),
        ]
        command += ["--constraint", str(constraints)]
        command += ["--editable", f".[{','.join(extras)}]" if extras else "."]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        die(f"pip could not install from {folder}; its reason is above")


def _check_machine(folder: Path, about: dict[str, Any]) -> None:
    """End with one line unless the wheels of a bundle run on this machine."""
    here = machine()
    if about["python"] != here["python"]:
        die(
            f"{folder} is for Python {about['python']}, {sys.prefix} has {here['python']}; set "
            f"PYTHON=/path/to/python{about['python']} and remove that environment"
        )
    if about["platform"] != here["platform"]:
        die(f"{folder} is for {about['platform']}, this is {here['platform']}; make it on its like")
    made, found = (
        tuple(map(int, v.split("."))) for v in (about["glibc"] or "0", here["glibc"] or "0")
    )
    if made > found:
        die(
            f"{folder} was made with glibc {about['glibc']}, this machine has {here['glibc']}; "
            "make it on a machine as old as this one"
        )


def _jax_of_machine(base_python: str, extra: str) -> str | None:
    """Return the version of jax that the machine has and cotjax can use; None otherwise.

    It fits when requirements.txt allows its version and the accelerator's plugin is with it. The
    environment then sees the packages of the machine's Python.
    """
    found = _versions(base_python)
    if not {"jax", "jaxlib"} <= set(found) or not _allows(found["jax"]):
        return None
    plugin = {"cuda12": "jax-cuda", "cuda13": "jax-cuda", "tpu": "libtpu"}.get(extra, "jax")
    if not any(name.startswith(plugin) for name in found):
        return None
    seen = _versions(sys.executable)
    if "jax" not in seen:
        # A second `venv` on an environment changes its settings and keeps its packages.
        command = [base_python, "-m", "venv", "--without-pip"]
        subprocess.run([*command, "--system-site-packages", sys.prefix], check=True)
        seen = _versions(sys.executable)
        if "jax" not in seen:
            subprocess.run([*command, sys.prefix], check=True)
    return found["jax"] if seen.get("jax") == found["jax"] and _is_outside() else None


def _versions(python: str) -> dict[str, str]:
    """Return name -> version of jax's packages that a Python sees."""
    listing = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps([[d.name, d.version] for d in m.distributions() if d.name]))"
    )
    done = subprocess.run([python, "-c", listing], capture_output=True, text=True, check=True)
    # The first of a name is the one that is imported.
    found: dict[str, str] = {}
    for name, version in json.loads(done.stdout):
        if of_jax(plain(name)):
            found.setdefault(plain(name), version)
    return found


def _is_outside() -> bool:
    """Return whether the jax that this environment sees is not in it."""
    where = "import importlib.metadata as m; print(m.distribution('jax').locate_file(''))"
    done = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, check=True)
    return not Path(done.stdout.strip()).resolve().is_relative_to(Path(sys.prefix).resolve())


def _allows(version: str) -> bool:
    """Return whether requirements.txt allows a version of jax."""
    lines = [_requirement(line) for line in requirements([])]
    return all(line.specifier.contains(version) for line in lines if plain(line.name) == "jax")


def _requirement(line: str) -> Any:
    # Nothing is installed yet, but pip brings the standard's parser.
    from pip._vendor.packaging.requirements import Requirement

    return Requirement(line)


def choose_extras(folder: Path, about: dict[str, Any], asked: str, own_jax: bool) -> list[str]:
    """Return the extras of pyproject.toml to install.

    asked: "", or the extra of launch/setup.sh. own_jax: the machine's jax is used, so that no
    accelerator is installed.
    """
    others = about["extras"]
    has = about["accelerator"]
    if asked and asked not in ACCELERATORS:
        if asked not in others:
            die(f"{folder} lacks the extra {asked}; make it with --extra {has},{asked}")
        asked = ""
    if own_jax:
        return others
    if not about["jax"]:
        die(
            f"{folder} holds no jax, and this machine's Python has none that fits; make the bundle "
            "without --no-jax, or set PYTHON to one with the jax of requirements.txt"
        )
    if not asked:
        return others
    # A driver for CUDA 13 runs CUDA 12 too.
    if has != asked and (has, asked) != ("cuda12", "cuda13"):
        die(f"{folder} is for {has}, this machine needs {asked}; make it with --extra {asked}")
    return joined_extras(has, others)


def _check_versions(
    folder: Path, manifest: dict[str, Any], extras: list[str], jax: str | None
) -> None:
    """End with one line unless a bundle has what this checkout requires."""
    for line in requirements(extras):
        wanted = _requirement(line)
        if (wanted.marker and not wanted.marker.evaluate()) or (
            jax is not None and of_jax(plain(wanted.name))
        ):
            continue
        package = manifest["packages"].get(plain(wanted.name))
        if package is None or not wanted.specifier.contains(package["version"]):
            has = f"has {package['version']}" if package else "lacks it"
            commit = (manifest["cotjax"]["commit"] or "unknown")[:12]
            die(
                f"this checkout needs {line}, and {folder} {has} (made at commit {commit}); make "
                "it again from this checkout"
            )
