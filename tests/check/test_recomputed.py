"""`cotjax study --check`: right reports pass, and what was changed in a file is found and named."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.measured import write_measured
from helpers.planted import PLANTED, write_planted
from helpers.studies import write_episode
from scipy import stats

from cotjax.check import student
from cotjax.check.main import check
from cotjax.check.study import read_study
from cotjax.check.summary import expected
from cotjax.cli.main import main
from cotjax.errors import DataError
from cotjax.report.summarize import summarize

GAME = "records/named/60/reference"


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A small study with its report; tests put back what they change."""
    run = tmp_path_factory.mktemp("right")
    cells = {name: PLANTED[name] for name in ("named", "hybrid")}
    write_planted(run, cells, games=4, states=2)
    summarize(run)
    return run


@pytest.fixture
def run(right):
    """The study, whose files are put back after the test."""
    before = {path: path.read_bytes() for path in right.rglob("*") if path.is_file()}
    yield right
    for path in right.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def differing(run):
    """Return the lines on numbers that differ."""
    lines = []
    agrees = check(run, lines.append)
    found = [line for line in lines if line.startswith("DIFFERS")]
    assert agrees == (not found)
    assert lines[-1] == (f"{len(found)} differ." if found else "All agree.")
    return found


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def in_summary(run, edit):
    change(run / "summary.json", edit)


def point(summary, arm="named", checkpoint=60):
    return next(
        row for row in summary["points"] if (row["arm"], row["checkpoint"]) == (arm, checkpoint)
    )


# ---- right reports


def test_a_right_report_passes_and_says_what_was_compared(run):
    lines = []
    assert check(run, lines.append)
    table = {line[:28].strip(): line[28:].split("  ") for line in lines if "  –" in line}
    assert "D1, D1'" in table and "share of the gain, verdicts" in table
    assert not any("absent" in line for line in lines)
    (left_out,) = (line for line in lines if line.startswith("Not compared"))
    # Every entry that is left out is named.
    assert "arms.label (2), metrics.label (" in left_out and "warnings (" in left_out
    assert " points" not in left_out
    # The base and two arms, four games, three drivers.
    assert f"Recomputed from {3 * 4 * 3} episode records and 0 files of probes" in lines[0]


def test_a_report_of_the_base_alone_passes(tmp_path):
    for game in range(3):
        write_episode(tmp_path, f"g{game}", arm="base", checkpoint=0, success=game > 0)
    summarize(tmp_path)
    assert differing(tmp_path) == []


def test_a_report_of_another_measure_and_broken_episodes_passes(study, tmp_path):
    """No primary measure, two domains, and games that one mode lacks."""
    write_episode(tmp_path, "extra", ended="env_error", success=False)
    summarize(tmp_path)
    assert differing(tmp_path) == []


def test_games_of_several_samples_that_did_not_move_are_no_evidence(tmp_path, monkeypatch):
    """Each game's gap changes by 1 - 2/3 - 1/3, which is 0 and above 0 in floating point."""
    for arm, step, cot, prompt in (("base", 0, 1, 0), ("sft", 10, 3, 2)):
        for sample in range(3):
            at = {"arm": arm, "checkpoint": step, "sample": sample}
            for game in range(6):
                write_episode(tmp_path, f"g{game}", success=sample < cot, **at)
                write_episode(tmp_path, f"g{game}", driver="prompt", success=sample < prompt, **at)
    change_of_gap = summarize(tmp_path).change("sft", "in_domain", "gap")
    assert (change_of_gap.estimate.value, change_of_gap.p) == (0.0, 1.0)
    assert differing(tmp_path) == []
    monkeypatch.setattr("cotjax.diagnostics.statistics._SAME", 0.0)
    summarize(tmp_path)
    (line,) = differing(tmp_path)
    assert "changes[sft, in_domain, gap].p: reported 0.03125, recomputed 1.0" in line


# ---- the check's own numbers


def test_numbers_are_those_that_a_hand_counts(study):
    """Of 12 games the base wins 2 by CoT and 1 by prompt actions, the arm "sft" 10 and 9."""
    found = expected(read_study(study))
    at = {(row["arm"], row["checkpoint"], row["domain"]): row for row in found["points"]}
    first, last = (at["sft", checkpoint, "in_domain"]["metrics"] for checkpoint in (0, 10))
    assert first["d3_cot"]["value"] == 2 / 12 and last["d3_prompt"]["value"] == 9 / 12
    assert last["gap"]["value"] == pytest.approx(1 / 12)
    interval = stats.binomtest(10, 12).proportion_ci(method="wilson")
    assert (last["d3_cot"]["low"], last["d3_cot"]["high"]) == pytest.approx(interval)
    # Of three expert states both actions are right in two, and both wrong in the third.
    assert last["d1_cot"]["value"] == last["d1_prompt"]["value"] == pytest.approx(2 / 3)
    assert first["d1_prompt"]["value"] == pytest.approx(1 / 3)
    assert first["revision_helpful"]["value"] == pytest.approx(1 / 3)
    (row,) = (row for row in found["placements"] if (row["arm"], row["measure"], row["domain"]) ==
              ("sft", "d3", "in_domain"))  # fmt: skip
    assert row["share"]["value"] == pytest.approx(1.0)


def test_seeds_that_records_name_are_one_arm_and_progress_is_that_of_a_plan(run):
    """Of a way of 10 steps 4 are left in one game; another ends farther away than it began."""
    for path in (run / "records/named").rglob("*.json"):
        change(path, lambda record: record.update(training_seed=3))
    about = json.loads((run / "run.json").read_text())["arms"]["named"]
    named = {name: about[name] for name in ("fraction", "direct_share", "thoughts")}
    change(run / "run.json", lambda meta: meta["arms"].update({"named/seed-3": named}))
    place = {"domain": "in_domain", "driver": "cot", "sample": 0, "turn": 0, "start": 10}
    rows = [{"arm": "named", "training_seed": 3, "checkpoint": 60}]
    for game, steps in (("in_domain-0", 4), ("in_domain-1", 25), ("in_domain-2", None)):
        ending = {"steps": steps, "unknown": None}
        rows.append(place | {"game": game, "ending": ending, "differs": None})
    path = run / "probes" / "progress" / "named" / "seed-3" / "60.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = expected(read_study(run))
    assert found["arms"]["named"]["seeds"] == {"named/seed-3": 3}
    (point,) = (row for row in found["points"] if (row["arm"], row["checkpoint"]) == ("named", 60))
    progress = point["metrics"]["progress_cot"]
    assert (progress["value"], progress["n"]) == (pytest.approx((0.6 - 1 - 1) / 3), 3)


def test_t_and_the_sign_test_are_those_of_scipy():
    for freedom in (1, 2, 3, 11, 59, 500, math.inf):
        law = stats.norm() if math.isinf(freedom) else stats.t(freedom)
        for distance in (1e-6, 0.5, 2.0, 12.0):
            tail = student.t_tail(distance, freedom)
            assert tail == pytest.approx(law.sf(distance), rel=1e-9)
        for tail in (0.4999, 0.025, 1e-8, 1e-12):
            assert student.t_quantile(tail, freedom) == pytest.approx(law.isf(tail), rel=1e-9)
    for up, down in ((0, 0), (5, 5), (3, 9), (60, 41)):
        right = stats.binomtest(up, up + down).pvalue if up + down else 1.0
        assert student.sign_test(up, down) == pytest.approx(right, rel=1e-12)
    assert student.root(lambda x: np.exp(x) - 3, -1, 5) == pytest.approx(np.log(3), abs=1e-12)


def test_the_check_needs_numpy_alone_and_no_other_room(right):
    """What made the report cannot be what checks it: it cannot be imported."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in {{"jax", "scipy", "pydantic", "rich", "ml_collections"}}:
            raise ModuleNotFoundError(name)
        if top == "cotjax" and rest and rest.partition(".")[0] not in ("check", "errors"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from cotjax.check.main import check
assert check(Path({str(right)!r}), lambda line: None)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what was changed is found


def one_digit(number):
    def edit(summary):
        number(summary)["value"] = round(number(summary)["value"] + 1e-6, 6)

    return edit


def metric(name):
    return lambda summary: point(summary)["metrics"][name]


def row(section, number=0):
    return lambda summary: summary[section][number]


def put(where, **values):
    return lambda summary: where(summary).update(values)


CHANGED = {
    "a digit of D1": (one_digit(metric("d1_cot")), "points[named, 60, in_domain].metrics.d1_cot"),
    "a digit of a change": (one_digit(row("changes")), "changes[named, in_domain, d3_cot].value"),
    "a digit of a share": (
        one_digit(lambda summary: summary["placements"][1]["share"]), ".share.value"
    ),
    "an end": (put(metric("gap"), low=-0.1), ".metrics.gap.low"),
    "a number of states": (put(metric("d1_cot"), n=9), ".d1_cot.n: reported 9, recomputed 8"),
    "a p-value": (put(point, gap_p=0.03125), "points[named, 60, in_domain].gap_p"),
    "a verdict": (put(row("placements"), verdict="in both"), ".verdict: reported 'in both'"),
    "nothing in place of a number": (
        put(metric("d2"), value=None, low=None, high=None, n=0, games=0), ".metrics.d2.value"
    ),
    "not a number": (put(metric("d2"), value=math.nan), ".metrics.d2.value: reported nan"),
    "a number of what was not measured": (
        lambda summary: point(summary)["metrics"].update(d4_gap_model=dict(metric("d2")(summary))),
        ".metrics.d4_gap_model",
    ),
    "a row that is gone": (lambda summary: summary["changes"].pop(), "changes["),
    "a row twice": (
        lambda summary: summary["changes"].append(summary["changes"][0]), "(row 2 of the same)"
    ),
    "a number that nobody counts": (lambda summary: summary.update(extra=1), "extra: reported 1"),
    "won episodes": (
        lambda summary: point(summary)["episodes"]["cot"].update(won=0), ".episodes.cot.won"
    ),
    "a limit of a metric": (
        lambda summary: summary["metrics"]["saved_steps"].update(upper=20), "metrics.saved_steps"
    ),
    "a seed": (lambda summary: summary["arms"]["named"]["seeds"].update(named=5), ".seeds.named"),
    "run.json's copy": (lambda summary: summary["run"].update(checkpoints=[0]), "run.checkpoints"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_was_changed_in_the_summary_is_found(run, name):
    edit, named = CHANGED[name]
    in_summary(run, edit)
    found = differing(run)
    assert found and any(named in line for line in found)


def swap(record):
    for turn in record["steps"]:
        turn["cot"], turn["prompt"] = turn["prompt"], turn["cot"]


def differing_record(run):
    """Return an expert's record in which one action of two is right."""
    for path in sorted((run / GAME).glob("*.json")):
        turns = json.loads(path.read_text())["steps"]
        if any(turn["cot"]["action"] != turn["prompt"]["action"] for turn in turns):
            return path
    raise AssertionError("the study has no revision")


def test_a_swapped_pair_of_responses_is_found(run):
    path = differing_record(run)
    change(path, swap)
    found = differing(run)
    (line,) = (line for line in found if "[named, 60, in_domain].metrics.d1_gap.value" in line)
    assert f"from {GAME}/ (4 files)" in line


@pytest.mark.parametrize(
    ("driver", "edit", "named"),
    [
        ("cot", lambda record: record.update(success=not record["success"]), "d3_cot.value"),
        ("cot", lambda record: record.update(ended="length"), "episodes.cot"),
        ("cot", lambda record: record.update(checkpoint=30), "points[named, 30, in_domain]"),
        ("reference", lambda record: record["steps"].pop(), "d1_cot.n"),
        ("reference", lambda record: record["steps"][0].update(reference="x"), "d1_"),
        ("prompt", lambda record: record["steps"][0]["prompt"].update(new_tokens=5), "new_tokens"),
        ("prompt", lambda record: record["timing"].update(sampler_s=1.501), "seconds.sampler"),
    ],
)  # fmt: skip
def test_what_was_changed_in_a_record_is_found(run, driver, edit, named):
    change(next(iter(sorted((run / f"records/named/60/{driver}").glob("*.json")))), edit)
    assert any(named in line for line in differing(run))


def test_a_dropped_game_is_found(run):
    next((run / "records/hybrid/60/prompt").glob("*.json")).unlink()
    found = differing(run)
    assert any("episodes.prompt.played: reported 4, recomputed 3" in line for line in found)
    assert any("points[hybrid, 60, in_domain].metrics.gap.n" in line for line in found)
    assert not any("points[named" in line for line in found)


def test_a_changed_row_of_a_probe_is_found(tmp_path):
    write_measured(tmp_path)
    summarize(tmp_path)
    path, other = sorted((tmp_path / "probes" / "floor").glob("named*/**/60.jsonl"))
    heading, first, *rest = path.read_text().splitlines()
    row = json.loads(first) | {"cot": ["a", "a", "a", "b"], "prompt": ["a", "b", "b", "b"]}
    path.write_text("\n".join([heading, json.dumps(row), *rest]) + "\n")
    found = differing(tmp_path)
    assert found and {line.split("from ")[-1].split("/")[0] for line in found} == {"probes"}
    assert all(re.search(r"d2_|revision_excess", line) for line in found)
    # One file of two seeds was changed, and both are behind the arm's number.
    (line,) = (line for line in found if "[named, 60, in_domain].metrics.d2_sampled.value" in line)
    files = ", ".join(str(each.relative_to(tmp_path)) for each in (path, other))
    assert line.endswith(f"from {files}")


def test_a_changed_layer_of_a_probe_is_found(tmp_path):
    write_measured(tmp_path)
    summarize(tmp_path)
    (path,) = (tmp_path / "probes" / "gradient").glob("base/0.jsonl")
    heading, first, *rest = path.read_text().splitlines()
    row = json.loads(first)
    row["cot"]["reasoning_by_layer"][1] = 0.875
    path.write_text("\n".join([heading, json.dumps(row), *rest]) + "\n")
    found = differing(tmp_path)
    assert found and all("layers.gradient_reasoning[1]" in line for line in found)
    assert all(line.endswith("from probes/gradient/base/0.jsonl") for line in found)
    assert any(".value: reported" in line for line in found)
    row["cot"]["reasoning_by_layer"][1] = 1.5
    path.write_text("\n".join([heading, json.dumps(row), *rest]) + "\n")
    with pytest.raises(DataError, match=r"0\.jsonl:2: cot: reasoning_by_layer\[1\] is 1\.5, not"):
        differing(tmp_path)


# ---- the command, and bad input


def test_the_command_says_it_by_its_exit_code(run, capsys):
    assert main(["study", "--check", str(run)]) == 0
    assert capsys.readouterr().out.endswith("All agree.\n")
    in_summary(run, one_digit(metric("d1_cot")))
    assert main(["study", "--check", str(run)]) == 1
    assert "DIFFERS points[named, 60, in_domain].metrics.d1_cot.value" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["study", "--check", str(run), "--power"])


def whole_text(path, text):
    return lambda run: (run / path).write_text(text)


def without(*names):
    def edit(run):
        path = next((run / GAME).glob("*.json"))
        content = json.loads(path.read_text())
        inner = content
        for name in names[:-1]:
            inner = inner[name]
        del inner[names[-1]]
        path.write_text(json.dumps(content))

    return edit


def cut_record(run):
    path = next((run / GAME).glob("*.json"))
    path.write_text(path.read_text()[:100])


def no_records(run):
    for path in (run / "records").rglob("*.json"):
        path.unlink()


def twice(run):
    path = next((run / GAME).glob("*.json"))
    (path.parent / "copy.json").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), r"summary\.json: there is none; write it"),
        (whole_text("summary.json", "{"), r"summary\.json: not complete JSON"),
        (whole_text("summary.json", '{"schema_version": 3}'), "schema_version is 3, not 4"),
        (whole_text("run.json", "[]"), r"run\.json: not a JSON object"),
        (no_records, "records: holds no episode record"),
        (cut_record, r"reference/.*\.json: not complete JSON"),
        (without("driver"), r"reference/.*\.json: lacks the field driver"),
        (without("steps", 0, "cot", "valid"), r"steps\[0\]: cot: lacks the field valid"),
        (twice, "the same episode as"),
    ],
)
def test_bad_input_is_named_in_one_line(run, spoil, message):
    spoil(run)
    with pytest.raises(DataError, match=message) as error:
        check(run, lambda line: None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", r"60\.jsonl: is empty"),
        ('{"arm": "named", "checkpoint": 60}\n{"game"', r"60\.jsonl:2: not JSON"),
        ('{"arm": "named", "checkpoint": 60}\n{"game": 1}', r"60\.jsonl:2: game is 1, not text"),
    ],
)
def test_a_malformed_probe_is_named_with_its_line(run, lines, message):
    path = run / "probes" / "floor" / "named" / "60.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    with pytest.raises(DataError, match=message):
        check(run, lambda line: None)
