"""Compiled programs are kept for the next start, and change no result."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from cotjax.runtime import compiled
from cotjax.runtime.compiled import ENABLED, FOLDER, LEAST_SECONDS, SIZE, folder_name, keep_compiled

TESTS = Path(__file__).parents[1]
X86 = """\
processor : 0
model name : Some CPU
cpu MHz : 2600.000
flags : fpu avx2 avx512f
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The environment of a user whose cache folder is empty, before jax is imported."""
    monkeypatch.delitem(sys.modules, "jax")
    return {"XDG_CACHE_HOME": str(tmp_path)}


def start(cache, **more):
    """Start a process that compiles as a user's does, with its cache below `cache`."""
    of_tests = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    names = (FOLDER, SIZE, LEAST_SECONDS, ENABLED, *of_tests)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"XDG_CACHE_HOME": str(cache), LEAST_SECONDS: "0", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", TESTS / "runtime" / "compiled_step.py"],
        env=environment | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert error == ""
    return json.loads(out)


@pytest.mark.slow
def test_a_kept_program_gives_the_bits_of_a_fresh_one(tmp_path):
    fresh = said(start(tmp_path, **{ENABLED: "false"}))
    assert fresh["hits"] == 0 and not any(tmp_path.iterdir())
    # Two at once, from an empty folder.
    runs = [start(tmp_path), start(tmp_path)]
    runs = [said(run) for run in runs]
    # A killed process or a full disk leaves half of an entry, or one without the time of its use.
    (folder,) = (tmp_path / "cotjax").iterdir()
    entries = sorted(folder.glob("*-cache"))
    entries[0].write_bytes(entries[0].read_bytes()[:200])
    entries[1].with_name(entries[1].name.removesuffix("-cache") + "-atime").unlink()
    # Noticed by jax alone: the check at the start takes it for an old one.
    entries[2].write_bytes(b"\x78" + bytes(300))
    os.utime(entries[2], (0, 0))
    warm = said(start(tmp_path))
    assert warm["hits"] == len(entries) - 3 > 3
    assert {run["digest"] for run in (*runs, warm)} == {fresh["digest"]}
    assert not any(run["warning"] for run in (*runs, warm))
    # Those that the check removed were replaced.
    assert all(entry.stat().st_size > 200 for entry in entries[:2])


def test_the_folder_is_that_of_the_cpu_and_of_jax(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(X86)
    name = folder_name(file)
    file.write_text(X86.replace("2600", "3100"))
    assert folder_name(file) == name
    file.write_text(X86.replace(" avx512f", ""))
    assert folder_name(file) != name
    missing = folder_name(tmp_path / "none")
    monkeypatch.setattr("platform.node", lambda: "another host")
    assert folder_name(tmp_path / "none") not in (name, missing)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "99")
    assert folder_name(file).startswith("jax-99-jaxlib-99-")


def test_what_the_user_set_stays(fresh, tmp_path):
    assert keep_compiled(own := fresh | {FOLDER: "/elsewhere"}) is None
    assert own == fresh | {FOLDER: "/elsewhere"}
    assert keep_compiled(own := fresh | {ENABLED: "False"}) is None
    assert FOLDER not in own and not any(tmp_path.iterdir())
    assert keep_compiled(own := fresh | {SIZE: "7", LEAST_SECONDS: "3"}) is None
    assert own[FOLDER] == str(tmp_path / "cotjax" / folder_name())
    assert (own[SIZE], own[LEAST_SECONDS]) == ("7", "3")


def test_a_folder_of_no_use_turns_it_off_in_one_sentence(fresh, tmp_path, monkeypatch):
    def refused(reason):
        warning = keep_compiled(fresh)
        assert FOLDER not in fresh
        assert reason in warning and str(tmp_path) not in warning and "\n" not in warning

    (tmp_path / "cotjax").write_text("a file")
    refused("File exists" if sys.platform == "darwin" else "Not a directory")
    (tmp_path / "cotjax").unlink()
    Usage = namedtuple("Usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 20))
        refused("less than 512 MiB of the disk are free")
    (tmp_path / "cotjax" / folder_name()).chmod(0o777)
    refused("another user can write there")
    with monkeypatch.context() as patch:
        patch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
        refused("filelock is not installed")
    (tmp_path / "cotjax" / folder_name()).chmod(0o755)
    assert keep_compiled(fresh) is None
