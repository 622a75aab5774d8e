"""Several runs on one page, and what is said of a run that cannot be reported."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from helpers.planted import PLANTED, write_planted
from helpers.studies import ELICITATION

from cotjax.cli.main import main
from cotjax.errors import DataError
from cotjax.report.front import front_of
from cotjax.report.labels import percent
from cotjax.report.runs import (
    ONE_PROTOCOL,
    RunPart,
    check_run,
    differences,
    protocol_line,
    report_runs,
    unfinished,
)
from cotjax.report.summarize import summarize
from cotjax.report.summary import ElicitationUse

NASTY = "</li><script>alert(1)</script><img src=http://x.y/z onerror=alert(2)> {{ 7*7 }}"


def small(run, **options):
    run.mkdir(parents=True)
    cells = {name: PLANTED[name] for name in ("named", "hybrid")}
    return write_planted(run, cells, games=4, states=1, played=False, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one protocol, in folders of one name; nothing is written to them."""
    place = tmp_path_factory.mktemp("runs")
    return small(place / "one" / "demo", draw=1), small(place / "two" / "demo", draw=2)


@pytest.fixture
def copies(runs, tmp_path):
    return [
        shutil.copytree(run, tmp_path / str(number) / "demo") for number, run in enumerate(runs)
    ]


def change(run, **fields):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | fields))


def test_two_runs_on_one_page(copies, tmp_path):
    change(copies[1], title=NASTY)
    page = report_runs(copies, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert page.name == "runs.html" and ONE_PROTOCOL in text
    assert "<script" not in text and "<img" not in text and "{{" not in text.replace("{{ 7*7", "")
    assert [*re.findall(r"<h1>(.*?)</h1>", text)] == ["2 runs"]
    headings = re.findall(r'<h2 id="run(\d)-run"><bdi>(.*?)</bdi>', text)
    assert [number for number, _ in headings] == ["0", "1"]
    assert headings[0][1] == "demo: Planted" and headings[1][1].startswith("demo-2: &lt;/li&gt;")
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    inside = re.findall(r'href="#([^"]+)"', text)
    assert set(inside) <= set(ids)
    reports = [link for link in re.findall(r'href="([^"#]+)"', text)]
    assert reports == ["../0/demo/report.html", "../1/demo/report.html"]
    assert all((page.parent / link).is_file() for link in reports)
    # The comparison has the summaries' numbers, a row for each arm of each run.
    table = text[text.index('id="compared"') : text.index('id="run0-run"')]
    for name, run in zip(("demo", "demo-2"), copies, strict=True):
        summary = summarize(run)
        for arm in summary.arms:
            assert f"<bdi>{name}: {arm}</bdi>" in table
            placement = summary.placed(arm, "in_domain").placement
            for estimate in (placement.total, placement.prompt, placement.gap):
                assert percent(estimate, signed=True, digits=1) in table


def test_what_differs_between_protocols_is_said_in_a_line(copies, tmp_path):
    for path in (copies[1] / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        elicitation = ELICITATION | {"max_action_tokens": 32}
        record |= {"games_hash": "other", "elicitation": elicitation, "schema_version": 3}
        path.write_text(json.dumps(record))
    change(copies[1], config={"primary": {"measure": "d1", "margin": 0.05}})
    text = report_runs(copies, tmp_path).read_text(encoding="utf-8")
    (line,) = re.findall(r'<p class="lead">(.*?)</p>', text)
    for said in (
        "schema of the records",
        "games (hash)",
        "token limit of a prompt response",
        "margin",
        "one of training",
    ):
        assert said in line
    assert "world" not in line and "temperature" not in line
    assert re.search(r'<td [^>]*class="words">16</td><td [^>]*class="words">32</td>', text)


def test_that_a_run_has_no_episodes_of_a_kind_is_said_once(copies):
    part = summarize(copies[0])
    played = (*part.elicitation, ElicitationUse("prompt", ELICITATION, 8))
    whole = replace(part, elicitation=played)
    parts = [
        RunPart(name, "", "4", front_of(summary, name), "")
        for name, summary in (("whole", whole), ("part", part))
    ]
    (row,) = differences(parts).rows
    assert (row.label, row.cells) == ("prompt-driven episodes", ("played", "–"))
    assert protocol_line(parts).startswith("The runs differ in prompt-driven episodes: ")


def test_a_run_that_cannot_be_reported_gets_a_line(runs, tmp_path, capsys):
    with pytest.raises(DataError, match=r"nowhere: no such folder; give the folder of a run"):
        check_run(tmp_path / "nowhere")
    (tmp_path / "trained" / "arms").mkdir(parents=True)
    with pytest.raises(DataError, match=r"trained: trained but not played.*cotjax evaluate"):
        check_run(tmp_path / "trained")
    later = shutil.copytree(runs[0], tmp_path / "later")
    for path in (later / "records").rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(DataError, match=r"later: its records are of schema 99, and .* 4, 3, 2;"):
        check_run(later)
    # The command says it in one line, before anything is written.
    assert main(["report", str(runs[0]), str(tmp_path / "nowhere")]) == DataError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere: no such folder" in line
    assert not (runs[0] / "report.html").exists()


def test_a_run_that_is_unfinished_gets_a_line(copies, capsys):
    whole, part = copies
    assert unfinished(whole, summarize(whole)) == ""
    arms = json.loads((part / "run.json").read_text())["arms"]
    change(part, checkpoints=[0, 60, 120], arms=arms | {"late": {"label": "late"}})
    line = unfinished(part, summarize(part))
    assert line.startswith(f"{part}: unfinished, without records of late and records at check")
    assert "120; run the command that made it again" in line
    (part / "run.json").unlink()
    assert main(["report", str(part)]) == 0
    said = capsys.readouterr()
    assert f"{part}: unfinished, without run.json" in said.err
    assert "report.html" in said.out and (part / "report.html").is_file()


def test_a_report_of_runs_needs_no_config_and_refuses_one(runs, capsys):
    assert main(["report", str(runs[0]), "--config", "configs/demo.py"]) == 2
    assert "leave --config out" in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--out", "elsewhere"]) == 2
    assert "leave --out out" in capsys.readouterr().err
