"""Seeds of a study: members of an arm, in folders, records, probes' paths and the report."""

import json
from pathlib import Path

import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.config import default_config
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import UsageError
from cotjax.rollout.record import read_records
from cotjax.runtime.claim import arms_begun
from cotjax.runtime.members import arm_and_seed, member_folders, member_name
from cotjax.study.arms import arms_of, check_arms, dropping_of, member_named
from cotjax.study.ready import check_folder
from cotjax.train.metrics import read_metrics

CONFIG = """
from cotjax.config import default_config


def get_config():
    config = default_config("helpers.kitchen:KITCHEN")
    config.workers = 0
    config.games.eval_split, config.games.in_domain, config.games.ood = "test", 2, 0
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 1, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 32
    config.train.steps = config.train.save_every = config.train.batch = 2
    config.train.warmup, config.train.information_examples = 1, 0
    config.train.row_length = config.data.max_length = config.evaluate.max_length = 256
    config.evaluate.max_steps, config.evaluate.slots, config.evaluate.max_new_tokens = 2, 4, 8
    config.arms = {"sft": {"label": "SFT"}}
    config.seeds = (0, 2)
    return config
"""


def config_of(**arms):
    config = default_config()
    config.arms = {name: {"label": name, **own} for name, own in arms.items()}
    config.seed, config.seeds = 5, (3, 11)
    return config


def test_a_member_is_named_by_its_arm_and_seed():
    for arm, seed in (("named", 0), ("named", 11), ("named", None), ("seed-3", None)):
        assert arm_and_seed(member_name(arm, seed)) == (arm, seed)
    assert member_name("named", 11) == "named/seed-11"
    assert arm_and_seed("named/seed-x") == ("named/seed-x", None)


def test_folders_of_arms_with_and_without_seeds_are_found(tmp_path):
    for name in ("a/seed-1/checkpoints", "a/seed-0", "b/checkpoints", "c-s0", "d/seed-of-doubt"):
        (tmp_path / name).mkdir(parents=True)
    found = member_folders(tmp_path)
    assert list(found) == ["a/seed-0", "a/seed-1", "b", "c-s0", "d"]
    assert all(folder == tmp_path / name for name, folder in found.items())
    assert member_folders(tmp_path / "none") == {}


def test_every_arm_has_a_member_for_each_seed_and_is_one_cell():
    config = config_of(plain={}, k={"fraction": 0.5})
    arms = arms_of(config)
    assert {name: (arm.cell, arm.seed) for name, arm in arms.items()} == {
        **{"k/seed-3": ("k", 3), "k/seed-11": ("k", 11)},
        **{"plain/seed-3": ("plain", 3), "plain/seed-11": ("plain", 11)},
    }
    assert dropping_of(config, "k/seed-11").seed == 11
    assert dropping_of(config, "k/seed-11").fraction_at(1) == 0.5
    assert member_named(config, "k") == "k/seed-3"
    assert member_named(config, "k/seed-11") == "k/seed-11"
    with pytest.raises(UsageError, match=r"--arm is 'k/seed-4'; there are k/seed-3, k/seed-11, pl"):
        member_named(config, "k/seed-4")


@pytest.mark.parametrize(
    ("seeds", "own", "words"),
    [
        ((0, 0), {}, r"seeds is \(0, 0\); give integers of at least 0, each once"),
        ((-1,), {}, "seeds is .*at least 0"),
        (("0",), {}, "seeds is .*give integers"),
        ((0, 1), {"seed": 4}, r"arms\.x\.seed is 4, but seeds \(0, 1\) are those of every arm"),
    ],
)
def test_impossible_seeds_are_refused(seeds, own, words):
    config = config_of(x=own)
    config.seeds = seeds
    with pytest.raises(UsageError, match=words):
        check_arms(config)


def test_a_slash_in_an_arms_name_is_refused():
    with pytest.raises(UsageError, match="'a/seed-0' has a slash"):
        check_arms(config_of(**{"a/seed-0": {}}))


def test_seeds_are_added_to_a_run_but_neither_dropped_nor_given_to_arms_without(tmp_path):
    """Nothing but folders: an arm has begun where a checkpoint behind its start is."""

    def claims(folder, seeds, arms=("sft",)):
        config = default_config()
        config.arms = {name: {"label": name} for name in arms}
        config.seeds = seeds
        mine = json.loads(config.to_json_best_effort())
        check_folder(folder, mine)
        return mine

    run = tmp_path / "run"
    (run / "arms" / "sft" / "seed-0" / "checkpoints" / "2").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(claims(tmp_path / "new", (0, 1))))
    claims(run, (0, 1, 2))
    claims(run, (0,))
    for seeds, words in (((1, 2), "sft/seed-0 trained there"), ((), "this config has sft; name")):
        with pytest.raises(UsageError, match=words):
            claims(run, seeds)
    older = tmp_path / "older"
    (older / "arms" / "sft-s0" / "checkpoints" / "2").mkdir(parents=True)
    (older / "config.json").write_text(json.dumps(claims(tmp_path / "new", (), ("sft-s0",))))
    with pytest.raises(UsageError, match="sft-s0 trained there, and this config has sft/seed-0"):
        claims(older, (0,))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(arguments but the command, the run's folder) of a study of an arm and two seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "c.py").write_text(CONFIG)
    mine = [
        tiny.trajectory(name=f"t{n}", steps=1 + n % 3, split=split, game=f"g{1 + n % 4}")
        for n, split in enumerate(["train"] * 8 + ["test"] * 4)
    ]
    write_trajectories(folder / "mine.jsonl", mine)
    arguments = ["--config", str(folder / "c.py"), "--out", str(folder / "run")]
    arguments.append(f"--config.data.trajectories={folder / 'mine.jsonl'}")
    assert main(["study", *arguments]) == 0
    return arguments, folder / "run"


MEMBERS = ["sft/seed-0", "sft/seed-2"]


@pytest.mark.slow
def test_seeds_are_a_field_of_folders_records_and_the_report(study):
    _, run = study
    assert arms_begun(run) == MEMBERS
    losses = {
        name: [row["loss"] for row in read_metrics(run / "arms" / name / "metrics.jsonl")]
        for name in MEMBERS
    }
    assert losses["sft/seed-0"] != losses["sft/seed-2"]
    records = list(read_records(run / "records"))
    found = {(each.arm, each.training_seed, each.checkpoint) for each in records}
    assert found == {("base", None, 0), ("sft", 0, 2), ("sft", 2, 2)}
    for path in (run / "records").rglob("*.json"):
        about = json.loads(path.read_text())
        start = Path(member_name(about["arm"], about["training_seed"])) / str(about["checkpoint"])
        assert path.relative_to(run / "records").parts[:-2] == start.parts
    about = json.loads((run / "run.json").read_text())
    assert {name: (arm["cell"], arm["seed"]) for name, arm in about["arms"].items()} == {
        name: arm_and_seed(name) for name in MEMBERS
    }
    summary = json.loads((run / "summary.json").read_text())
    assert {arm: each["seeds"] for arm, each in summary["arms"].items()} == {
        "sft": {"sft/seed-0": 0, "sft/seed-2": 2}
    }
    assert {point["arm"] for point in summary["points"]} == {"sft"}
    assert {point["arm"] for point in summary["seed_points"]} == {*MEMBERS}
    assert "2 seeds" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_seed_that_is_added_is_trained_and_played_and_nothing_else(study):
    arguments, run = study
    kept = {
        path: path.stat().st_mtime_ns
        for folder in ("records", "arms")
        for path in (run / folder).rglob("*")
        if path.is_file() and path.suffix in (".json", ".jsonl")
    }
    for command in ("train", "evaluate"):
        assert main([command, *arguments, "--config.seeds=0,2,1"]) == 0
    assert arms_begun(run) == sorted([*MEMBERS, "sft/seed-1"])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    seeds = {each.training_seed for each in read_records(run / "records")}
    assert seeds == {None, 0, 1, 2}
    assert main(["train", *arguments]) == 2, "its seeds are 0 and 2 alone"


@pytest.mark.slow
def test_a_seed_of_an_arm_leaves_as_a_model(study, tmp_path, capsys):
    _, run = study
    export = ["export", "--run", str(run), "--out", str(tmp_path / "out")]
    assert main([*export, "--arm", "sft"]) == 2
    assert "no arm 'sft'; there are sft/seed-0, sft/seed-1" in capsys.readouterr().err
    assert main([*export, "--arm", "sft/seed-2"]) == 0
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.slow
def test_parts_make_the_records_and_the_report_of_the_whole(study, tmp_path, capsys):
    arguments, run = study
    parts = [*arguments[:2], "--out", str(tmp_path / "run"), *arguments[4:]]
    seeds = "--config.seeds=0,2,1"
    for members in ("sft/seed-2", "sft/seed-1", "sft/seed-0"):
        assert main(["study", *parts, seeds, "--arms", members]) == 0
        assert "This part is done: " + members in capsys.readouterr().out.replace("\n", " ")
        assert not (tmp_path / "run" / "report.html").exists()
    assert {each.arm for each in read_records(tmp_path / "run" / "records")} == {"base", "sft"}
    played = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("records/**/*")}
    assert main(["study", *parts, seeds]) == 0
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("records/**/*")}
    assert again == played, "nothing was left to play"
    assert main(["study", *arguments, seeds]) == 0
    whole, pieces = (
        json.loads((folder / "summary.json").read_text()) for folder in (run, tmp_path / "run")
    )
    assert whole["points"] == pieces["points"]
    assert whole["checkpoint_hashes"].keys() == pieces["checkpoint_hashes"].keys()
