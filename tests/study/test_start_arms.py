"""Arms of several objectives that start from one short fine-tuning, in one study."""

import json
import shutil
from dataclasses import replace

import pytest
from helpers import tiny
from helpers.doors import base_folder

from cotjax.cli.main import main
from cotjax.config import load_config
from cotjax.data.trajectories import Step, write_trajectories
from cotjax.errors import UsageError
from cotjax.rollout.record import read_records
from cotjax.study.arms import arms_of, check_arms, collects, plays_to_train
from cotjax.study.starts import Place, in_order, start_of, starts_of, train_of
from cotjax.train.checkpoint import Checkpoints

CONFIG = '''
"""Doors: arms of several objectives."""
from cotjax.config import default_config


def get_config():
    config = default_config("helpers.doors:WORLD")
    config.workers = 0
    config.games.in_domain, config.games.ood = 4, 0
    config.data.trajectories = WON
    config.model.base = BASE
    config.rl.tasks, config.rl.group, config.rl.slots, config.rl.need_thought = 2, 3, 6, False
    config.train.steps, config.train.save_every, config.train.batch = 2, 1, 2
    config.train.row_length = config.data.max_length = config.evaluate.max_length = 128
    config.train.warmup = 0
    config.train.information_examples = 2
    config.evaluate.max_steps, config.evaluate.slots = 2, 4
    config.evaluate.max_new_tokens, config.evaluate.max_action_tokens = 6, 4
    config.evaluate.cot_prefix = "<action>"
    config.evaluate.episodes_at = (0, -1)
    config.arms = {
        "grpo": {"label": "GRPO", "objective": "grpo", "start": "short"},
        "short": {"label": "short SFT", "steps": 1},
        "sft": {"label": "SFT", "start": "short@1"},
        "dpo": {"label": "DPO", "objective": "dpo", "rejected": LOST, "start": "short"},
        "gigpo": {
            **{"label": "GiGPO", "objective": "gigpo", "start": "short", "fraction": 0.5},
            **{"learning_rate": 1e-4, "advantage": "rloo"},
        },
    }
    return config
'''


def episode(name, opened, said):
    step = Step(
        observation=f"The {opened} door is open.",
        thought=f"The {said} door is open.",
        action=said,
        provenance="scripted, before the action",
        admissible_commands=(),
    )
    return replace(
        tiny.trajectory(name),
        task="go in",
        task_type=opened,
        game=f"train-{name}-{opened}",
        steps=(step,),
        success=said == opened,
        environment="doors",
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The arguments of a study of doors."""
    folder = tmp_path_factory.mktemp("doors")
    won = [episode(f"{n}", kind, kind) for n in range(4) for kind in ("red", "blue")]
    lost = [
        replace(episode(f"{n}", kind, other), id=f"lost-{n}-{kind}")
        for n in range(4)
        for kind, other in (("red", "blue"), ("blue", "red"))
    ]
    won = [replace(each, id=each.game) for each in won]
    # Of a game that is played: its states are those of D1.
    played = {"id": "played", "game": "test-0-red", "split": "test"}
    won.append(replace(episode("0", "red", "red"), **played))
    write_trajectories(folder / "won.jsonl", won)
    write_trajectories(folder / "lost.jsonl", lost)
    names = {
        "WON": str(folder / "won.jsonl"),
        "LOST": str(folder / "lost.jsonl"),
        "BASE": str(base_folder(folder / "base")),
    }
    lines = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    (folder / "doors.py").write_text(lines + CONFIG)
    return ["--config", str(folder / "doors.py"), "--out", str(folder / "run")], folder / "run"


def config_of(study, **changes):
    config = load_config(study[0][1])
    for arm, own in changes.items():
        with config.unlocked():
            config.arms[arm].update(own)
    return config


def test_arms_are_trained_after_the_one_they_start_from(study):
    config = config_of(study)
    assert in_order(config) == ["short", "dpo", "gigpo", "grpo", "sft"]
    assert start_of(config, "short") is None
    assert starts_of(config) == {Place("short", 1)}
    assert arms_of(config)["sft"].start == "short@1"
    with config.unlocked():
        config.seeds = (0, 4)
    assert in_order(config)[:4] == ["short/seed-0", "short/seed-4", "dpo/seed-0", "dpo/seed-4"]
    assert arms_of(config)["grpo/seed-4"].start == "short/seed-4@1"
    assert start_of(config, "dpo/seed-0") == Place("short/seed-0", 1)


def test_an_arm_has_its_own_steps_and_rate_and_one_that_plays_has_no_data(study):
    config = config_of(study)
    assert (train_of(config, "short").steps, train_of(config, "sft").steps) == (1, 2)
    assert train_of(config, "gigpo").learning_rate == 1e-4
    assert train_of(config, "gigpo/seed-3").learning_rate == 1e-4
    assert train_of(config, "sft").learning_rate == config.train.learning_rate
    gigpo = arms_of(config)["gigpo"]
    assert gigpo.reinforced and gigpo.direct_share is None and gigpo.thoughts == ""
    # Of the data of a file nothing is collected, but training games are played.
    assert not collects(config) and plays_to_train(config)
    for arm in ("grpo", "gigpo"):
        del config.arms[arm]
    assert not plays_to_train(config)


@pytest.mark.parametrize(
    ("arm", "own", "words"),
    [
        ("grpo", {"start": "none"}, "arms.grpo.start is 'none'; give an arm of dpo, gigpo"),
        ("grpo", {"start": "short@x"}, "as in 'sft@30'"),
        ("sft", {"start": "short@2"}, "arms.sft.start is 'short@2', and 'short' saves 1 "),
        ("sft", {"start": "short@0"}, "saves 1"),
        ("short", {"start": "sft@1"}, "each starts from another of them"),
        ("short", {"start": "short@1"}, "arms dpo, gigpo, grpo, sft, short: each starts from"),
        ("sft", {"steps": -1}, "arms.sft.steps is -1; it must be more than 0, or 0 for train"),
        ("sft", {"learning_rate": -1.0}, "arms.sft.learning_rate is -1.0"),
        ("sft", {"objective": "ppo"}, "there are sft, dpo, frodo, trigger, grpo, gigpo"),
        ("grpo", {"rejected": "x"}, "its objective is 'grpo'; remove it"),
    ],
)
def test_a_start_that_is_not_possible_is_one_clear_line(study, arm, own, words):
    with pytest.raises(UsageError) as error:
        check_arms(config_of(study, **{arm: own}))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_adapters_are_refused_with_a_start(study):
    config = config_of(study)
    config.model.lora_rank = 2
    with pytest.raises(UsageError, match="without its adapters the arm would be the base"):
        check_arms(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("arms.grpo.advantage=ppo", "arms.grpo.advantage is 'ppo'"),
        ("arms.grpo.direct_share=0.3", "arms.grpo.direct_share is 0.3: what is trained on is"),
        ("train.warmup=1", "arms.short: train.warmup (1) must be"),
        ("arms.grpo.start=", "is 'random'"),
        ("rl.top_p=0.5", "rl.top_p is 0.5"),
        ("rl.group=1", "rl.group is 1"),
        ("rl.omega=0.5", "arms.grpo.objective is 'grpo' and rl.omega 0.5"),
        ("train.accumulate=2", "train.accumulate is 2"),
        ("masking.unit=token", "masking.unit is 'token'"),
    ],
)
def test_what_an_arm_cannot_play_is_one_line_before_anything_is_trained(
    study, tmp_path, capsys, override, words
):
    command = ["study", *study[0][:2], "--out", str(tmp_path / "run"), f"--config.{override}"]
    base = ["--config.model.base=random"] if "start" in override else []
    assert main([*command, *base]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_arms_are_trained_played_and_reported_and_resume(study, capsys):
    command, run = study
    assert main(["study", *command]) == 0
    of_arms = {}
    for arm in ("short", "grpo", "sft", "dpo", "gigpo"):
        steps = [1] if arm == "short" else [1, 2]
        checkpoints = Checkpoints(run / "arms" / arm / "checkpoints")
        assert checkpoints.steps() == [0, *steps]
        settings = json.loads((run / "arms" / arm / "settings.json").read_text())
        of_arms[arm] = settings["made_from"].get("start")
        assert bool(settings.get("rl")) == (arm in ("grpo", "gigpo"))
    digest = Checkpoints(run / "arms" / "short" / "checkpoints").digest(1)
    assert of_arms.pop("short") is None
    assert all(
        (each["arm"], each["step"], each["sha256"]) == ("short", 1, digest)
        for each in of_arms.values()
    )
    records = list(read_records(run / "records"))
    played = {(each.arm, each.checkpoint) for each in records if each.driver == "cot"}
    ends = {(arm, 2) for arm in of_arms}
    assert played == {("base", 0), ("short", 1), *ends}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last_checkpoint"] == 2
    assert summary["arms"]["grpo"]["start"] == "short@1"
    at = {(each["arm"], each["checkpoint"]): each["metrics"] for each in summary["points"]}
    assert at["grpo", 0] == at["short", 1]
    assert main(["study", "--check", str(run)]) == 0
    # A second time nothing is left to do; an arm that is lost is trained again.
    before = (run / "summary.json").read_bytes()
    shutil.rmtree(run / "arms" / "gigpo" / "checkpoints" / "2")
    assert main(["study", *command]) == 0
    assert Checkpoints(run / "arms" / "gigpo" / "checkpoints").steps() == [0, 1, 2]
    capsys.readouterr()
    assert json.loads(before)["points"] == json.loads((run / "summary.json").read_text())["points"]
    assert main(["study", *command, "--config.arms.grpo.start=sft"]) == 2
    assert "arms.grpo.start is 'short' there, 'sft' here" in capsys.readouterr().err
