"""Arms with their own thoughts, direct share and seed."""

import json
from pathlib import Path

import pytest
from helpers import tiny
from helpers.configs import ONE_UPDATE, STUDY

from cotjax.cli.main import main
from cotjax.config import default_config, load_config
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import UsageError
from cotjax.runtime.claim import content_of_arm
from cotjax.runtime.files import sha256_of
from cotjax.study.arms import arms_of, check_arms, collects, dropping_of
from cotjax.study.describe import _made_from as described
from cotjax.study.games import check_world
from cotjax.study.training_data import selection_of
from cotjax.train.metrics import read_metrics

CELLS = STUDY.replace(
    "    return config",
    """\
    config.games.in_domain = config.games.ood = 0
    config.model.lora_rank = 2
    config.train.information_examples = 4
    config.arms = {
        "named-s0": {"label": "named", "fraction": 0.0},
        "named-s1": {"label": "named", "fraction": 0.0, "seed": 1},
        "reduced": {"label": "k", "fraction": 0.3},
        "hybrid": {"label": "hybrid", "fraction": 0.0, "direct_share": 0.5},
        "unnamed": {"label": "unnamed", "fraction": 0.0, "thoughts": "unnamed"},
        "written": {"label": "written", "fraction": 0.0, "trajectories": WRITTEN},
    }
    return config""",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    config = folder / "cells.py"
    written = [tiny.trajectory(f"w{n}", task_type="pick_and_place_simple") for n in range(5)]
    # The last is of a task type that is held out, so it is not trained on.
    written.append(tiny.trajectory("w5", task_type="pick_cool_then_place_in_recep"))
    write_trajectories(folder / "written.jsonl", written)
    config.write_text(f"WRITTEN = {str(folder / 'written.jsonl')!r}\n{CELLS}")
    assert main(["train", "--config", str(config), "--out", str(folder / "run")]) == 0
    return config, folder / "run"


def config_of(**arms):
    config = default_config()
    config.arms = {name: {"label": name, **own} for name, own in arms.items()}
    return config


def test_an_arm_without_a_value_has_the_configs():
    config = config_of(plain={}, own={"thoughts": "unnamed", "direct_share": 0.0, "seed": 0})
    config.seed, config.data.direct_share, config.collect.thoughts = 7, 0.25, "named"
    arms = arms_of(config)
    assert (arms["plain"].data, arms["plain"].seed) == (("named", 0.25, ()), 7)
    assert (arms["own"].data, arms["own"].seed) == (("unnamed", 0.0, ()), 0)
    assert arms["plain"].fraction == 0.0 and arms["plain"].control == "action"
    assert dropping_of(config, "plain").seed == 7 and dropping_of(config, "own").seed == 0


def test_arms_that_differ_by_seed_and_label_alone_share_a_cell():
    config = config_of(
        **{"named-s0": {"seed": 0}, "named-s1": {"seed": 1}, "named-s2": {"seed": 2}},
        **{"k3": {"fraction": 0.3}, "one": {"direct_share": 1.0}, "two": {"direct_share": 1.0}},
    )
    cells = {arm: about.cell for arm, about in arms_of(config).items()}
    assert cells == {
        **dict.fromkeys(("named-s0", "named-s1", "named-s2"), "named"),
        **{"k3": "k3", "one": "one", "two": "one"},
    }


def test_two_cells_never_share_a_name():
    config = config_of(a={"fraction": 0.1}, a1={"seed": 1}, a2={"seed": 2})
    assert {arm: about.cell for arm, about in arms_of(config).items()} == {
        **{"a": "a", "a1": "a1", "a2": "a1"}
    }


def test_the_full_demo_has_every_cell_of_the_demo_from_three_seeds():
    configs = Path(__file__).parents[2] / "configs"
    demo, full = (load_config(configs / f"{name}.py") for name in ("demo", "demo_full"))
    short, whole = (
        {about.cell: about.data for about in arms_of(config).values()} for config in (demo, full)
    )
    assert short.items() < whole.items() and len(whole) == 6
    assert {("named", 0.0), ("named", 0.3), ("unnamed", 0.0), ("unnamed", 0.3), ("named", 1.0)} == {
        data[:2] for data in whole.values()
    }
    members = {name: about.seed for name, about in arms_of(full).items()}
    assert len(members) == 18
    assert {f"unnamed_reduced/seed-{seed}": seed for seed in range(3)}.items() < members.items()
    assert {about.seed for about in arms_of(demo).values()} == {0}


def test_a_size_of_the_demo_is_a_config_of_its_own(capsys):
    for size in ("quick", "full"):
        assert main(["demo", f"--{size}", "--config", "configs/demo.py"]) == 2
        assert f"--{size} is a config of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"thoughts": "named", "trajectories": "a.jsonl"}, "its trajectories, a.jsonl, have their"),
        ({"trajectories": 3}, "arms.x.trajectories is 3; it must be of type str"),
        ({"thoughts": "silent"}, "arms.x.thoughts is 'silent'; world 'alfworld' has named and unn"),
        ({"direct_share": 1.5}, "arms.x.direct_share is 1.5; it must be from 0 to 1, or -1"),
        ({"direct_share": -0.5}, "arms.x.direct_share is -0.5; it must be from 0 to 1, or -1"),
        ({"seed": -2}, "arms.x.seed is -2; it must be at least 0, or -1"),
        ({"seed": "1"}, "arms.x.seed is '1'; it must be of type int"),
    ],
)
def test_an_impossible_value_of_an_arm_is_refused(own, words):
    with pytest.raises(UsageError, match=words):
        check_arms(config_of(x=own))


def test_kinds_of_scripted_thoughts_do_not_apply_to_a_users_trajectories():
    config = config_of(x={"thoughts": "unnamed"}, y={})
    config.data.trajectories = "mine.jsonl"
    with pytest.raises(UsageError, match=r"arms\.x\.thoughts.*mine\.jsonl has its own thoughts"):
        check_arms(config)
    config.arms.x.thoughts = ""
    check_arms(config)
    assert arms_of(config)["y"].thoughts == ""


def test_an_arms_own_trajectories_take_the_place_of_collected_ones():
    config = config_of(
        plain={},
        own={"trajectories": "a/x.jsonl"},
        k={"trajectories": "a/x.jsonl", "fraction": 1.0},
    )
    arms = arms_of(config)
    assert arms["plain"].data == ("named", 0.0, ())
    assert arms["own"].data == ("x.jsonl", 0.0, ())
    assert arms["own"].data == arms["k"].data and arms["own"].cell != arms["k"].cell
    plain, own = (selection_of(config, arms[arm]) for arm in ("plain", "own"))
    assert plain.task_types and own.task_types is None
    assert set(own.held_out) == set(config.task_types.ood)
    assert collects(config)
    config.arms.plain.thoughts, config.arms.plain.trajectories = "", "b/x.jsonl"
    assert not collects(config)
    names = {arm: about.thoughts for arm, about in arms_of(config).items()}
    assert names == {"plain": "b/x.jsonl", "own": "a/x.jsonl", "k": "a/x.jsonl"}
    config.data.trajectories = "a/x.jsonl"
    assert {arm: about.trajectories for arm, about in arms_of(config).items()} == {
        **{"plain": "b/x.jsonl", "own": "", "k": ""}
    }


def test_an_arms_own_task_types_take_the_place_of_the_configs():
    config = config_of(usual={}, other={}, file={"trajectories": "a/x.jsonl"})
    pick, cool = "pick_and_place_simple", "pick_cool_then_place_in_recep"
    config.arms.other.task_types = config.arms.file.task_types = (pick, cool)
    arms = arms_of(config)
    assert len({arm.data for arm in arms.values()}) == 3
    assert len({arm.cell for arm in arms.values()}) == 3
    # An out-of-domain type is trained on where an arm names it, and nowhere else.
    usual, other, file = (selection_of(config, arms[arm]) for arm in ("usual", "other", "file"))
    assert usual.task_types == tuple(config.task_types.in_domain) and cool not in usual.task_types
    assert other.task_types == file.task_types == (pick, cool)
    assert other.held_out == file.held_out == ()
    check_arms(config)
    config.task_types.collect = config.task_types.in_domain
    with pytest.raises(
        UsageError, match=rf"arms\.other\.task_types has '{cool}'; task_types\.collect"
    ):
        check_arms(config)
    config.arms.other.task_types = ()
    config.arms.file.task_types = ("nap",)  # of a file, the world's types
    with pytest.raises(UsageError, match=r"arms\.file\.task_types has 'nap'; world 'alfworld' has"):
        check_arms(config)


def test_an_arms_own_trajectories_are_refused_where_games_or_examples_are_held_out():
    config = config_of(x={"trajectories": "a.jsonl"}, y={})
    config.prompt.examples = 1
    with pytest.raises(UsageError, match=r"arms\.x\.trajectories is a\.jsonl, and prompt"):
        check_arms(config)
    config.prompt.examples, config.games.ood = 0, 2
    config.games.ood_domains = ("ood_rooms",)
    check_arms(config)
    with pytest.raises(UsageError, match=r"games\.ood_domains has ood_rooms.*a\.jsonl"):
        check_world(config)


def test_a_missing_file_of_an_arm_is_named_before_the_folder_is_claimed(tmp_path, capsys):
    file = tmp_path / "c.py"
    missing = '    config.arms.sft.trajectories = "~/none.jsonl"\n    return config'
    file.write_text(ONE_UPDATE.replace("    return config", missing))
    out = tmp_path / "run"
    assert main(["train", "--config", str(file), "--out", str(out)]) == 3
    error = capsys.readouterr().err
    assert f"arms.sft.trajectories: {Path.home() / 'none.jsonl'}: no such file" in error
    assert not out.exists()


@pytest.mark.slow
def test_arms_of_other_data_are_trained_on_other_data_and_the_others_share_theirs(cells):
    _, run = cells
    data = {folder.name: content_of_arm(folder)["data"] for folder in (run / "arms").iterdir()}
    assert data["named-s0"] == data["named-s1"] == data["reduced"]
    assert data["hybrid"]["sha256"] == data["named-s0"]["sha256"]
    assert len({about["examples"] for about in data.values()}) == 4
    assert data["unnamed"]["file"].endswith("train_unnamed.jsonl")
    assert data["written"]["sha256"] == sha256_of(run.parent / "written.jsonl")
    assert len(list((run / "dataset").glob("*/agent-*"))) == 4
    named, unnamed = (
        [json.loads(line) for line in (run / "trajectories" / name).read_text().splitlines()]
        for name in ("train.jsonl", "train_unnamed.jsonl")
    )
    for episode, other in zip(named, unnamed, strict=True):
        for step, same in zip(episode["steps"], other["steps"], strict=True):
            assert step.pop("thought", None) != same.pop("thought", None) or not step["trained"]
        assert episode == other
    counts = json.loads((run / "data.json").read_text())
    assert set(counts["arms"]) == set(data)
    made_from = described({arm: run / "arms" / arm for arm in data})
    assert made_from["data"] == data and set(made_from["base"]) == {"recipe", "recall_steps"}
    provenance = counts["arms"]["hybrid"]["thought_provenance"]
    assert set(provenance) == {"scripted, before the action", "no thought"}
    assert counts["arms"]["named-s1"] == counts["arms"]["reduced"]
    written = counts["arms"]["written"]
    assert (written["trajectories"], written["trained_trajectories"]) == (6, 5)
    assert written["left_out"]["task_type"]["trajectories"] == 1
    log = (run / "log.txt").read_text()
    assert "written (written.jsonl, direct_share 0):" in log
    assert "named-s0, named-s1, reduced (named thoughts, direct_share 0):" in log


@pytest.mark.slow
def test_arms_of_another_seed_have_another_order_of_data(cells):
    _, run = cells
    losses = {
        folder.name: [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (run / "arms").iterdir()
    }
    assert losses["named-s0"] != losses["named-s1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("arms.hybrid.direct_share=0.25", "arms.hybrid.direct_share is 0.5 there, 0.25 here"),
        ("arms.unnamed.thoughts=named", "arms.unnamed.thoughts is 'unnamed' there, 'named' here"),
        ("arms.named-s1.seed=2", "arms.named-s1.seed is 1 there, 2 here"),
        ("arms.written.trajectories=", "written.jsonl' there, '' here"),
    ],
)
@pytest.mark.slow
def test_a_resumed_arm_keeps_its_data_and_its_seed(cells, capsys, change, words):
    config, run = cells
    assert main(["train", "--config", str(config), "--out", str(run), f"--config.{change}"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_changed_file_of_one_arm_is_refused(cells, capsys):
    config, run = cells
    file = run.parent / "written.jsonl"
    before = file.read_text()
    try:
        file.write_text("".join(before.splitlines(keepends=True)[1:]))
        assert main(["train", "--config", str(config), "--out", str(run)]) == 2
    finally:
        file.write_text(before)
    assert f"the content of {file} changed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_start_trains_nothing(cells):
    config, run = cells
    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("metrics.jsonl")}
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_data_check_and_show_mask_take_an_arm(cells, capsys):
    config, run = cells
    data = run / "trajectories" / "train.jsonl"
    shared = ["--config", str(config)]
    check = ["data", "check", str(data), *shared]
    counts = json.loads((run / "data.json").read_text())["arms"]
    examples = {arm: counts[arm]["examples"] for arm in ("named-s0", "hybrid")}
    assert examples["named-s0"] != examples["hybrid"]
    for arm, count in examples.items():
        assert main([*check, "--arm", arm]) == 0
        assert f"{count} examples" in capsys.readouterr().out
    assert main(check) == 0  # without an arm: the config's own share, which is 0
    assert f"{examples['named-s0']} examples" in capsys.readouterr().out
    assert main(["data", "check", *shared, "--arm", "written"]) == 0  # its own file
    assert "5 examples: 15 of 18 steps" in capsys.readouterr().out
    assert main([*check, "--arm", "none"]) == 2
    assert "--arm is 'none'" in capsys.readouterr().err
    assert main(["data", "check", str(data), "--arm", "hybrid"]) == 2
    shown = {}
    for arm in ("named-s0", "hybrid"):
        assert main(["show-mask", "--data", str(data), *shared, "--arm", arm]) == 0
        shown[arm] = capsys.readouterr().out
    assert shown["hybrid"] != shown["named-s0"]
