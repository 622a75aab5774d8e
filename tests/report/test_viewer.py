"""What the viewer's data hold: every record, its marks, its tokens with roles and weights."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest

from cotjax.bench.viewer import write_made_up
from cotjax.cli.main import main
from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeHeading, ProbeRow
from cotjax.errors import UsageError
from cotjax.masking import Dropping, Role
from cotjax.report.viewer import measured
from cotjax.report.viewer.make import address, make_viewer
from cotjax.report.viewer.tokens import mean_weights
from cotjax.rollout.record import read_record, record_files


def unpacked(path):
    call = re.fullmatch(r'viewer\.arrived\("([^"]+)", "([^"]+)"\);\n', path.read_text())
    assert call[1] == path.stem
    return json.loads(gzip.decompress(base64.b64decode(call[2])))


def read_viewer(folder):
    """Return (index, [(what the index says of an episode, its entry, its chunk's pieces)])."""
    index = unpacked(folder / "data" / "index.js")
    chunks = [unpacked(folder / "data" / f"{name}.js") for name in index["chunks"]]
    rows = []
    for row in range(len(index["columns"]["run"])):
        said = {
            name: index["tables"][name][column[row]] if name in index["tables"] else column[row]
            for name, column in index["columns"].items()
        }
        chunk = chunks[said["chunk"]]
        rows.append((said, chunk["episodes"][said["place"]], chunk["pieces"]))
    return index, rows


def marks(index, said):
    return [mark for bit, mark in enumerate(index["marks"]) if said["marks"] >> bit & 1]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    run = tmp_path_factory.mktemp("made-up") / "run"
    run.mkdir()
    write_made_up(run, 54, steps=3)
    make_viewer([run], run / "viewer")
    return run


def test_every_record_is_there_with_its_texts_and_tokens(made_up):
    index, rows = read_viewer(made_up / "viewer")
    records = [read_record(path) for path in record_files(made_up / "records")]
    assert len(rows) == len(records) == 54
    for (said, entry, pieces), record in zip(rows, records, strict=True):
        place = record.arm, record.checkpoint, record.driver, record.game.id, record.sample
        assert tuple(said[k] for k in ("arm", "checkpoint", "driver", "game", "sample")) == place
        assert index["elicitations"][said["elicitation"]] == record.elicitation
        assert entry["prompt"].startswith("<|im_start|> user Your task is to : put a plate")
        for step, turn in zip(entry["steps"], record.steps, strict=True):
            assert step["observation"] == turn.observation
            assert tuple(step["admissible"]) == turn.admissible_commands
            assert (step["executed"], step["accepted"]) == (turn.executed, turn.accepted)
            scores = step["actions"]["prompt_constrained"]["logprobs"]
            assert scores == pytest.approx(turn.prompt_constrained.logprobs, abs=0.0051)
            for kind in ("cot", "prompt"):
                response, shown = getattr(turn, kind), step["actions"].get(kind)
                if response is None:
                    assert shown is None
                    continue
                text = "".join(pieces[number] for number in shown["tokens"])
                assert text.split() == response.text.split()
                assert sum(count for _, count, _ in shown["roles"]) == len(response.ids)
                assert shown["logprobs"] == pytest.approx(response.logprobs, abs=0.0051)


def test_roles_and_weights_are_those_of_the_arm(made_up):
    """The made-up arms drop the action of 30 % of the examples; the base trains on nothing."""
    _, rows = read_viewer(made_up / "viewer")
    for said, entry, _ in rows:
        for step in entry["steps"]:
            for kind, given in step["actions"].items():
                if "roles" not in given:
                    continue
                roles = [role for role, _, _ in given["roles"]]
                reasoned = ["REASONING", "ACTION_OPEN"] if kind == "cot" else []
                assert roles == [*reasoned, "ACTION", "ACTION_CLOSE"]
                weights = {role: weight for role, _, weight in given["roles"]}
                if said["arm"] == "base":
                    assert set(weights.values()) == {None}
                else:
                    assert weights.pop("ACTION") == 0.7 and set(weights.values()) == {1.0}


@pytest.mark.parametrize("control", ["action", "reasoning", "random tokens", "reasoning tokens"])
def test_mean_weights_are_the_mean_over_many_draws(control):
    roles = (
        Role.PROMPT, *[Role.REASONING] * 5, Role.ACTION_OPEN, *[Role.ACTION] * 2,
        Role.ACTION_CLOSE, Role.END,
    )  # fmt: skip
    dropping = Dropping(fraction=0.4, control=control)
    expected = mean_weights(roles[1:], dropping, step=0)
    drawn = [dropping.tokens(np.array(roles), f"example {n}") for n in range(1000)]
    kept = 1 - np.mean(drawn, axis=0)
    for role, share in zip(roles[1:], kept[1:], strict=True):
        assert expected[role] == pytest.approx(share, abs=0.05)
    assert expected[Role.PROMPT] == 0


def test_marks_of_an_episode(tmp_path, episode):
    where = {"arm": "base", "checkpoint": 0}
    steps = {
        "same": [("look", "look", "look")],
        "helpful": [("open", "look", "open")],
        "harmful": [("look", "open", "open")],
        "neither": [("look", "go", "open")],
        "not comparable": [(None, "look", "look"), ("look", None, "look")],
    }
    for game, of_game in steps.items():
        episode(tmp_path, game, of_game, driver="reference", **where)
    episode(tmp_path, "played", [("nothing", "look")], success=False, **where)
    make_viewer([tmp_path], tmp_path / "viewer")
    index, rows = read_viewer(tmp_path / "viewer")
    assert {said["game"]: marks(index, said) for said, _, _ in rows} == {
        "same": [],
        "helpful": ["revised", "helpful"],
        "harmful": ["revised", "harmful"],
        "neither": ["revised"],
        "not comparable": ["invalid"],
        "played": ["revised", "not_accepted"],
    }


class Verdicts(ProbeRow):
    metrics: ClassVar = {"v": Metric("a verdict", "revisions")}

    verdict: str

    def counts(self) -> Mapping[str, float]:
        return {}


def test_rows_of_probes_stand_at_their_state(tmp_path, episode, monkeypatch):
    monkeypatch.setattr(measured, "PROBE_ROWS", {"revisions": Verdicts})
    for game in ("g", "h"):
        episode(tmp_path, game, [("look", "go"), ("look", "look")])
    heading = ProbeHeading(
        probe="revisions", arm="sft", checkpoint=10, checkpoint_hash="", games_hash="",
        settings={}, states=1,
    )  # fmt: skip
    row = Verdicts(driver="cot", game="h", domain="in_domain", sample=0, turn=0, verdict="harmful")
    path = tmp_path / "probes" / "revisions" / "sft" / "10.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(heading.model_dump_json() + "\n" + row.model_dump_json() + "\n")
    make_viewer([tmp_path], tmp_path / "viewer")
    index, rows = read_viewer(tmp_path / "viewer")
    found = {said["game"]: [step["probes"] for step in entry["steps"]] for said, entry, _ in rows}
    assert found == {"g": [{}, {}], "h": [{"revisions": {"verdict": "harmful"}}, {}]}
    assert [marks(index, said) for said, _, _ in rows] == [
        ["revised"],
        ["revised", "judged_harmful"],
    ]
    assert index["probes"] == ["revisions"]


def test_the_same_records_give_the_same_files_and_stale_ones_go(tmp_path, episode):
    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "viewer").rglob("*.*")}

    episode(tmp_path, "g")
    make_viewer([tmp_path], tmp_path / "viewer")
    first = files()
    (tmp_path / "viewer" / "data" / "index.js").unlink()  # as an interrupted call leaves it
    make_viewer([tmp_path], tmp_path / "viewer")
    assert files() == first
    episode(tmp_path, "h")
    make_viewer([tmp_path], tmp_path / "viewer")
    assert len(files()) == len(first)
    assert files().keys() != first.keys(), "another chunk"


def test_only_a_viewer_is_written_over(tmp_path, episode):
    episode(tmp_path, "g")
    with pytest.raises(UsageError, match="something other than a viewer"):
        make_viewer([tmp_path], tmp_path / "records")


def test_the_viewer_in_a_runs_folder_links_to_its_report(study):
    (study / "report.html").write_text("")
    make_viewer([study], study / "viewer")
    index, rows = read_viewer(study / "viewer")
    (run,) = index["runs"]
    assert (run["title"], run["report"]) == ("A tiny study", "../report.html")
    assert run["arms"]["reduced"]["label"] == "reduced action supervision, k = 0.3"
    assert run["arms"]["base"]["label"] == "base model"
    assert len(rows) == len(record_files(study / "records"))


def test_runs_of_one_name_stay_apart(tmp_path, episode, capsys):
    runs = [tmp_path / place / "run" for place in ("a", "b")]
    for run in runs:
        path = episode(run, "g/1")
    out = tmp_path / "both"
    assert main(["view", *map(str, runs), "--out", str(out)]) == 0
    assert "2 episodes" in capsys.readouterr().out
    _, rows = read_viewer(out)
    assert [said["run"] for said, _, _ in rows] == ["run", "run-2"]
    assert address("run-2", read_record(path), 3) == "#run-2/sft/10/cot/g%2F1/0/3"
