"""`cotjax games fetch`: the package's downloader, what it left, and what goes wrong."""

import shutil

import pytest

from cotjax.cli.main import main
from cotjax.envs.alfworld import fetch as fetching
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.errors import DataError, UsageError

COUNTS = {"train": 2, "valid_seen": 1, "valid_unseen": 1}
TASK = "look_at_obj_in_light"


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    folder = tmp_path_factory.mktemp("games")
    make_games(folder, {split: {TASK: number} for split, number in COUNTS.items()}, 0)
    return folder


@pytest.fixture(autouse=True)
def published(monkeypatch, tmp_path, games):
    """A downloader that copies these games to --data-dir, from a server that answers."""
    command = tmp_path / "bin" / "alfworld-download"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\ncp -r {games}/. "$2/" && echo "$ALFWORLD_DATA" > {tmp_path}/at\n'
    )
    command.chmod(0o755)
    monkeypatch.setattr(fetching, "PUBLISHED", COUNTS)
    monkeypatch.setattr(fetching, "_SERVER", tmp_path.as_uri() + "/at")
    (tmp_path / "at").touch()
    monkeypatch.setattr(fetching.sysconfig, "get_path", lambda name: str(command.parent))
    return command


def test_games_are_downloaded_once_and_counted(tmp_path, capsys, published):
    out = tmp_path / "alfworld"
    assert main(["games", "fetch", "alfworld", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 2 train, 1 valid_seen, 1 valid_unseen" in said and "downloads" in said
    assert (tmp_path / "at").read_text().strip() == str(out)
    published.unlink()  # what is complete needs no downloader
    assert main(["games", "fetch", "alfworld", "--out", str(out)]) == 0
    assert "downloads" not in capsys.readouterr().out


def test_a_download_that_lacks_games_is_no_success(tmp_path, games, published):
    published.write_text(
        f'#!/bin/sh\ncp -r {games}/. "$2/"; find "$2" -name valid_seen -exec rm -r {{}} +\n'
    )
    with pytest.raises(DataError, match=r"0 of 1 in valid_seen"):
        fetching.fetch(tmp_path / "out", print)


def test_a_downloader_that_fails_is_named(tmp_path, published):
    published.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(DataError, match="ended with code 7"):
        fetching.fetch(tmp_path / "out", print)
    shutil.rmtree(published.parent)
    with pytest.raises(UsageError, match="pip install alfworld"):
        fetching.fetch(tmp_path / "out", print)


def test_no_network_is_one_plain_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "_SERVER", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"cannot be reached.*bring the folder json_2.1.1 to"):
        fetching.fetch(tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_a_world_without_published_games_says_so(monkeypatch):
    from cotjax.envs.worlds import World

    class Toy(World):
        name, domains = "toy", {}
        games = make_env = None

    with pytest.raises(UsageError, match="'toy' has no games to download"):
        Toy().fetch_games(None, print)
