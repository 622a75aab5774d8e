"""Archives of runs: what is published gives the report's numbers again, and nothing else."""

import json
import tarfile

import pytest
from helpers.measured import write_measured

from cotjax.cli.main import main
from cotjax.report.exports.archive import export_archive
from cotjax.report.summarize import summarize
from cotjax.rollout.record import read_records


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small study with probes and its report."""
    run = tmp_path_factory.mktemp("run")
    write_measured(run)
    summarize(run)
    return run


def test_an_archive_gives_the_numbers_of_its_report_again(run, tmp_path, capsys):
    file = tmp_path / "run.tar.xz"
    assert main(["export", "archive", str(run), "--out", str(file)]) == 0
    records = list(read_records(run / "records"))
    assert f"{len(records)} records" in capsys.readouterr().out
    assert main(["study", "--check", str(file)]) == 0
    assert capsys.readouterr().out.endswith("All agree.\n")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "again", filter="data")
    before = json.loads((run / "summary.json").read_text())
    summarize(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "summary.json").read_text()) == before
    found = list(read_records(tmp_path / "again" / "records"))
    assert len(found) == len(records)
    turns = [turn for each in found for turn in each.steps]
    assert not any(turn.prompt_ids or (turn.cot and turn.cot.ids) for turn in turns)
    export_archive(run, tmp_path / "twice.tar.xz")
    assert (tmp_path / "twice.tar.xz").read_bytes() == file.read_bytes()


def test_an_archive_names_no_folder_of_the_machine(run, tmp_path):
    about = run / "run.json"
    before = about.read_text()
    own = str(run / "trajectories" / "train.jsonl")
    named = {"data": own, "base": "/home/somebody/models/base", "out": "runs/x", "words": "a/b"}
    about.write_text(json.dumps(json.loads(before) | {"extra": named}))
    export_archive(run, tmp_path / "run.tar.xz")
    about.write_text(before)
    with tarfile.open(tmp_path / "run.tar.xz") as archive:
        kept = json.load(archive.extractfile("run.json"))["extra"]
    assert kept == named | {"data": "trajectories/train.jsonl", "base": "base"}


def test_a_folder_of_an_archive_for_each_part_is_a_run_too(run, tmp_path, capsys):
    published = tmp_path / "published"
    published.mkdir()
    arms = {path.name for path in (run / "records").iterdir()}
    for part in ("run", *arms):
        with tarfile.open(published / f"{part}.tar.xz", "w:xz", preset=1) as archive:
            for path in sorted(path for path in run.rglob("*.json*") if path.is_file()):
                of_arms = [name for name in path.relative_to(run).parts if name in arms] or ["run"]
                if of_arms[0] == part:
                    archive.add(path, str(path.relative_to(run)))
    assert main(["study", "--check", str(published)]) == 0
    assert capsys.readouterr().out.endswith("All agree.\n")
    assert main(["report", "--table", str(published)]) == 0
    assert "in-domain" in capsys.readouterr().out
    (published / f"{min(arms)}.tar.xz").write_bytes(b"cut")
    assert main(["study", "--check", str(published)]) == 3
    assert f"{min(arms)}.tar.xz: no readable archive" in capsys.readouterr().err


def test_a_number_that_was_changed_in_an_archive_is_found(run, tmp_path, capsys):
    summary = run / "summary.json"
    before = summary.read_bytes()
    changed = json.loads(before)
    changed["points"][0]["metrics"]["d1_cot"]["value"] += 0.01
    summary.write_text(json.dumps(changed))
    export_archive(run, tmp_path / "run.tar.xz")
    summary.write_bytes(before)
    assert main(["study", "--check", str(tmp_path / "run.tar.xz")]) == 1
    assert "d1_cot" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 40, -200])
def test_a_damaged_archive_is_refused_in_a_line(run, tmp_path, cut, capsys):
    file = tmp_path / "run.tar.xz"
    export_archive(run, file)
    file.write_bytes(file.read_bytes()[:cut])
    assert main(["study", "--check", str(file)]) == 3
    assert "no readable archive" in capsys.readouterr().err
