"""Exports: tidy tables that add up to the records, and logs that inspect_ai reads."""

import csv
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.errors import UsageError
from cotjax.report.exports import tables
from cotjax.report.exports.inspect_logs import export_inspect
from cotjax.report.exports.tables import TABLES, export_tables
from cotjax.report.summarize import summarize
from cotjax.rollout.record import read_records


def rows(folder, name):
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small(tmp_path, episode):
    """A won and a broken episode, and expert states: one invalid, one with a text of lines."""
    run = tmp_path / "run"
    where = {"arm": "base", "checkpoint": 0}
    episode(run, "won", [("look", "go"), ("nothing", "look")], **where)
    episode(run, "broken", success=False, ended="env_error", **where)
    steps = [("look", "look", "look"), ("go", None, "look")]
    episode(
        run, "expert", steps, driver="reference", chosen=["look", "go"],
        thought='two\nlines, "quoted"', **where,
    )  # fmt: skip
    return run


def test_a_row_for_each_turn_and_kind_of_action(small, tmp_path, capsys):
    assert main(["export", "tables", str(small), "--out", str(tmp_path / "out")]) == 0
    assert "turns: 14 rows" in capsys.readouterr().out
    found = rows(tmp_path / "out", "turns")
    expert = [row for row in found if row["game"] == "expert"]
    assert [(row["turn"], row["kind"], row["action"], row["is_reference"]) for row in expert] == [
        ("0", "cot", "look", "true"),
        ("0", "prompt", "look", "true"),
        ("0", "prompt_constrained", "look", "true"),
        ("0", "reference", "look", "true"),
        ("1", "cot", "go", "false"),
        ("1", "prompt", "", "false"),
        ("1", "prompt_constrained", "go", "false"),
        ("1", "reference", "look", "true"),
    ]
    assert (expert[5]["valid"], expert[5]["reason"]) == ("false", "unclosed_action")
    assert expert[0]["thought"] == 'two\nlines, "quoted"'
    # The one listed action, "look", is the chosen one of the first turn alone.
    assert [row["logprob"] for row in expert if row["kind"] == "prompt_constrained"] == ["-0.5", ""]
    sent = [row for row in found if row["game"] == "won" and row["is_executed"] == "true"]
    assert [(row["kind"], row["accepted"]) for row in sent] == [("cot", "true"), ("cot", "false")]


def test_tables_add_up_to_the_summary(study, tmp_path):
    written = export_tables(study, tmp_path / "out")
    records = list(read_records(study / "records"))
    summary = summarize(study)
    episodes, metrics = (rows(tmp_path / "out", name) for name in ("episodes", "metrics"))
    assert written.rows["episodes"] == len(episodes) == len(records)
    won = [
        row["success"] == "true"
        for row in episodes
        if (row["arm"], row["driver"], row["domain"]) == ("sft", "cot", "in_domain")
    ]
    (d3,) = [
        row
        for row in metrics
        if (row["arm"], row["checkpoint"], row["domain"], row["metric"])
        == ("sft", "10", "in_domain", "d3_cot")
    ]
    assert float(d3["value"]) == pytest.approx(sum(won) / len(won), abs=1e-6)
    assert written.rows["changes"] == len(summary.changes) + len(summary.arm_differences)
    assert written.rows["placements"] == len(summary.placements)
    verdicts = {row["verdict"] for row in rows(tmp_path / "out", "placements")}
    assert verdicts == {str(row.placement.verdict) for row in summary.placements}


def test_the_same_records_give_the_same_csv(small, tmp_path):
    for name in ("a", "b"):
        export_tables(small, tmp_path / name)
    for name in TABLES:
        first, second = ((tmp_path / each / f"{name}.csv").read_bytes() for each in "ab")
        assert first == second and first.startswith(",".join(TABLES[name]).encode())
    with pytest.raises(UsageError, match="not empty"):
        export_tables(small, tmp_path / "a")


def test_parquet_has_the_same_rows_with_types(small, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_tables(small, tmp_path / "out")
    for name, columns in TABLES.items():
        table = parquet.read_table(tmp_path / "out" / f"{name}.parquet")
        assert table.column_names == list(columns)
        text = [
            {column: str(tables._plain(value)) for column, value in row.items()}
            for row in table.to_pylist()
        ]
        assert text == rows(tmp_path / "out", name)
    schema = parquet.read_schema(tmp_path / "out" / "turns.parquet")
    assert {str(schema.field(name).type) for name in ("turn", "valid", "logprob", "action")} == {
        "int64", "bool", "double", "string",
    }  # fmt: skip


def test_without_pyarrow_there_is_csv_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    assert not export_tables(small, tmp_path / "out").parquet
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv"}


def test_the_page_lists_every_column():
    page = (Path(__file__).parents[2] / "docs" / "viewer.md").read_text(encoding="utf-8")
    for name, columns in TABLES.items():
        section = page.partition(f"### {name}.csv\n")[2].partition("\n###")[0]
        listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE))
        assert listed == columns


def test_an_export_without_a_checkpoint_says_what_it_needs(capsys):
    assert main(["export", "--run", "somewhere", "--out", "x"]) == 2
    assert "needs --arm" in capsys.readouterr().err


def elsewhere(test):
    """Run a test of this file in the environment that `launch/test.sh --all` makes for it."""
    python = Path(sys.prefix) / "inspect" / "bin" / "python"
    if not (python.parents[1] / "complete").exists():
        pytest.skip("needs inspect_ai: pip install 'cotjax[inspect]', or launch/test.sh --all")
    command = [python, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"{__file__}::{test}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_inspect_reads_the_logs(small, tmp_path, capsys):
    if find_spec("inspect_ai") is None:
        return elsewhere("test_inspect_reads_the_logs")
    from inspect_ai import log

    out = tmp_path / "logs"
    assert main(["export", "inspect", str(small), "--out", str(out)]) == 0
    logs = {
        each.eval.task_args["driver"]: each
        for each in map(log.read_eval_log, log.list_eval_logs(str(out)))
    }
    assert logs.keys() == {"cot", "reference"}
    assert "2 logs" in capsys.readouterr().out
    played = {sample.id: sample for sample in logs["cot"].samples}
    won = played["won"]
    assert [message.role for message in won.messages] == ["user", "assistant"] * 2 + ["user"]
    assert won.messages[0].text.startswith("put a plate in fridge\n\nYou see a plate 1.")
    reasoning, action = won.messages[1].content
    assert (reasoning.reasoning, action.text) == ("I need a plate.", "look")
    assert won.messages[1].metadata["prompt"]["action"] == "go"
    assert won.scores["success"].value == 1 and won.metadata["driver"] == "cot"
    assert played["broken"].error.message == "the engine is gone" and not played["broken"].scores
    assert logs["cot"].eval.model == "cotjax/base@0"
    (expert,) = logs["reference"].samples
    assert (expert.scores["d1_cot"].value, expert.scores["d1_prompt"].value) == (0.5, 0.5)
    assert logs["reference"].results.scores[0].metrics["mean"].value == 0.5
    assert expert.target == ["look", "look"]


def test_without_inspect_ai_the_error_says_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "inspect_ai.log", None)
    with pytest.raises(UsageError, match=r"cotjax\[inspect\]"):
        export_inspect(small, tmp_path / "logs")
