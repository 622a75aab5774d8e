"""`cotjax rl`: what it refuses, and a whole run from play to report."""

import json
from pathlib import Path

import pytest
from helpers.doors import arguments

from cotjax.cli.main import main
from cotjax.rollout.record import read_records


@pytest.fixture
def doors(tmp_path):
    """The arguments of a run on the two doors."""
    return arguments(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.top_p=0.8", "rl.top_p is 0.8; it must be 1.0"),
        ("model.base=random", "model.base is 'random': give the policy to start from"),
        ("train.batch=0", "train.batch is 0"),
        ("evaluate.max_new_tokens=500", "evaluate.max_new_tokens is 500"),
        ("games.in_domain=9", "has 4 games of domain 'in_domain', and 9 are asked for"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_nothing_is_played(doors, capsys, override, words):
    assert main(["rl", *doors, f"--config.{override}"]) in (2, 3)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (Path(doors[3]) / "arms").exists()


@pytest.mark.slow
def test_a_run_trains_evaluates_and_reports_and_is_done_once(doors, capsys):
    out = Path(doors[3])
    assert main(["rl", *doors]) == 0
    rows = [json.loads(line) for line in (out / "arms/grpo/metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], "evaluated" in row) for row in rows] == [
        *((0, True), (1, False), (1, True), (2, False), (2, True))
    ]
    assert all(row["evaluated"]["in_domain"]["games"] == 4 for row in rows if "evaluated" in row)
    records = list(read_records(out / "records"))
    assert {(each.arm, each.checkpoint) for each in records} == {
        *(("base", 0), ("grpo", 1), ("grpo", 2))
    }
    assert {each.driver for each in records} == {"cot", "prompt"} and len(records) == 3 * 2 * 4
    assert all(each.elicitation["temperature"] == 0 for each in records)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["checkpoints"] == [0, 1, 2] and "grpo" in summary["arms"]
    assert "<html" in (out / "report.html").read_text()
    # A second time nothing is left to do, and other commands refuse the folder or know it.
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.npz")}
    assert main(["rl", *doors]) == 0 and main(["report", *doors]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.npz")} == times
    capsys.readouterr()
    assert main(["rl", *doors, "--config.rl.kl=0.5"]) == 2
    assert "rl.kl is 0.01 there, 0.5 here" in capsys.readouterr().err
