"""Files are written whole or not at all, and never over something that is not ours."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.config import load_config
from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import atomic_file, atomic_folder, check_output, local_path, write_atomic

pytestmark = pytest.mark.usefixtures("synced")


def left_over(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".partial"))


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as out:
        out.write("ein Gruß\r\n")
        assert not path.exists()
    assert path.read_bytes() == "ein Gruß\r\n".encode()
    assert left_over(path.parent) == []


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(failure), atomic_file(path) as out:
        out.write("after")
        raise failure
    assert path.read_text() == "before" and left_over(tmp_path) == []


def test_what_a_killed_process_had_begun_is_removed_and_what_a_living_one_writes_stays(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name, pid in (("a.txt", ended.pid), ("a.txt", 1), ("b.txt", ended.pid)):
        (tmp_path / f".{name}.{pid}.partial").write_text("begun")
    write_atomic(tmp_path / "a.txt", "whole")
    assert left_over(tmp_path) == [".a.txt.1.partial", f".b.txt.{ended.pid}.partial"]


def test_a_symbolic_link_and_its_target_stay(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(UsageError, match=r"symbolic link \(to target\)"):
        write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "mine"


def test_folders_and_special_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/null", "not a regular file"),
    ):
        with pytest.raises(UsageError, match=reason):
            write_atomic(place, "new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and os.path.exists("/dev/null")
    assert left_over(tmp_path) == []


def test_a_file_below_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        DataError, match=r"file/new\.txt: nothing can be written there \(.*\); choose another place"
    ):
        write_atomic(tmp_path / "file" / "new.txt", "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_of_somebody_else_stays_and_one_of_ours_is_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("a diary\n")
    with (
        pytest.raises(UsageError, match="was not written by this command"),
        atomic_file(path, mark=b'{"schema_version"') as out,
    ):
        out.write("{}")
    assert path.read_text() == "a diary\n"
    for ours in ("", '{"schema_version": 1}\n'):
        path.write_text(ours)
        with atomic_file(path, mark=b'{"schema_version"') as out:
            out.write("new")
        assert path.read_text() == "new"


def test_what_is_read_is_never_written_by_whatever_name(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("rows")
    os.link(path, tmp_path / "same.jsonl")
    for name in ("in.jsonl", "same.jsonl", "../" + tmp_path.name + "/in.jsonl"):
        with pytest.raises(UsageError, match="is an input and cannot be written"):
            check_output(tmp_path / name, inputs=[path, tmp_path / "absent"])
    check_output(tmp_path / "out.jsonl", inputs=[path])


def test_a_folder_appears_when_it_is_whole(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_text("of a run that was killed")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"] and left_over(
        tmp_path
    ) == []
    with pytest.raises(UsageError, match="not empty"), atomic_folder(tmp_path / "out"):
        pass
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "other") as folder:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt
    assert not (tmp_path / "other").exists() and left_over(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/run",
        "s3://bucket/run",
        "file:///tmp/run",
        "hdfs://host:9000/run",
        "gs:/bucket/run",
    ],
)
def test_urls_are_refused_in_one_sentence(url):
    for write in (
        local_path,
        lambda place: write_atomic(place, "new"),
        lambda place: atomic_folder(place).__enter__(),
    ):
        with pytest.raises(UsageError, match="only paths of this machine's file system"):
            write(url)


def test_other_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a b/c:d") == tmp_path / "a b" / "c:d"
    assert str(local_path("runs/a:1/x")) == "runs/a:1/x"
    assert str(local_path("C:/data")) == "C:/data"
    write_atomic("~/x.json", json.dumps({}))
    assert (tmp_path / "x.json").read_text() == "{}"


@pytest.mark.parametrize(
    "place",
    [
        "--out",
        "--config.out",
        "--config.data.trajectories",
        "--config.model.base",
        "--config.games.root",
    ],
)
def test_no_command_makes_a_folder_of_a_url(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    config = str(Path(__file__).parents[2] / "configs" / "demo_quick.py")
    assert main(["train", "--config", config, f"{place}=gs://bucket/run"]) == 2
    assert "gs://bucket/run: only paths of this machine's file system" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["games", "make", "--out", "URL"],
        ["convert", "model", "URL"],
        ["data", "import", "URL", "--out", "x"],
        ["play", "--games", "URL"],
    ],
)
def test_no_path_of_the_command_line_is_a_url(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("URL", "gs://bucket/a") for word in command]) == 2
    assert "gs://bucket/a: only paths of this machine's file system" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_not_utf8_gets_what_it_can_show():
    text = "from cotjax.cli.main import main; main(['data', 'check', 'na\\u2212me \\u23ce.jsonl'])"
    ended = subprocess.run(
        [sys.executable, "-c", text],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert b"Traceback" not in ended.stderr and b"na?me ?.jsonl: no such" in ended.stderr


def test_a_variable_of_the_environment_is_expanded_in_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("COTJAX_TEST_DATA", str(tmp_path))
    assert (
        local_path("$COTJAX_TEST_DATA/games")
        == local_path("${COTJAX_TEST_DATA}/games")
        == tmp_path / "games"
    )
    assert load_config(
        Path(__file__).parents[2] / "configs" / "demo.py", ["games.root=$COTJAX_TEST_DATA/games"]
    ).games.root == str(tmp_path / "games")
