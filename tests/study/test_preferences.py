"""Arms that train on pairs: what they are built from, and which settings do not go together."""

import json
from dataclasses import replace

import pytest
from helpers import tiny
from helpers.configs import ONE_UPDATE

from cotjax.cli.main import main
from cotjax.config import default_config
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import UsageError
from cotjax.objectives.frodo import Frodo
from cotjax.objectives.preference import Preference
from cotjax.runtime.claim import content_of_arm
from cotjax.study.arms import arms_of, check_arms, objective_of
from cotjax.train.metrics import read_metrics

PREFERENCES = ONE_UPDATE.replace(
    'config.arms = type(config)({"sft": {"label": "sft", "fraction": 0.0}})',
    """\
config.data.trajectories = EXPERT
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 1, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 48
    config.arms = {
        "sft": {"label": "sft"},
        "dpo": {"label": "DPO", "objective": "dpo", "rejected": EXPLORER},
        "dpo_reduced": {"label": "DPO+", "objective": "dpo", "fraction": 0.5},
        "frodo": {"label": "FRODO", "objective": "frodo"},
    }""",
)


def config_of(**arm):
    config = default_config()
    config.arms = {"arm": {"label": "arm", **arm}}
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    anywhere = tuple(f"open cabinet {number + 1}" for number in range(9))
    expert, explorer = [], []
    for number in range(8):
        episode = tiny.trajectory(f"t{number}", 3, task_type="pick_and_place_simple")
        steps = tuple(replace(step, admissible_commands=anywhere) for step in episode.steps)
        expert.append(replace(episode, steps=steps))
        other = (steps[0], replace(steps[1], action="open cabinet 7"), steps[2])
        explorer.append(replace(episode, id=f"x{number}", steps=other, success=False))
    write_trajectories(folder / "expert.jsonl", expert)
    write_trajectories(folder / "explorer.jsonl", explorer)
    files = {"EXPERT": folder / "expert.jsonl", "EXPLORER": folder / "explorer.jsonl"}
    lines = "".join(f"{name} = {str(file)!r}\n" for name, file in files.items())
    (folder / "config.py").write_text(lines + PREFERENCES)
    command = ["train", "--config", str(folder / "config.py"), "--out", str(folder / "run")]
    assert main(command) == 0
    return folder, command


def test_every_arm_trains_on_its_own_pairs(run, capsys):
    folder, command = run
    arms = folder / "run" / "arms"
    metrics = {arm.name: read_metrics(arm / "metrics.jsonl")[-1] for arm in arms.iterdir()}
    assert "objective" not in metrics["sft"]
    assert set(metrics["frodo"]["objective"]) > {"lm_loss", "ranking_loss", "margin"}
    assert metrics["dpo"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    examples = {arm: content_of_arm(arms / arm)["data"]["examples"] for arm in metrics}
    assert len(set(examples.values())) == 4
    for arm in ("dpo", "dpo_reduced", "frodo"):
        pairs = folder / "run" / "dataset" / f"pairs-{examples[arm]}"
        assert len(list(pairs.glob("reference-*.npy"))) == 1
    settings = json.loads((arms / "dpo" / "settings.json").read_text())
    assert settings["objective"] == {
        "name": "dpo",
        "beta": 0.1,
        "length_normalised": False,
        "nll": 0.0,
    }
    assert "objective" not in json.loads((arms / "sft" / "settings.json").read_text())
    assert main(command) == 0, "a second run finds everything"
    assert main([*command, "--config.preference.beta=0.5"]) == 2
    assert "preference.beta is 0.1 there, 0.5 here" in capsys.readouterr().err
    expert = folder / "explorer.jsonl"
    expert.write_text(expert.read_text().replace("cabinet 7", "cabinet 8"))
    assert main(command) == 2
    assert "gives other examples" in capsys.readouterr().err


def test_an_arm_has_the_settings_of_its_objective():
    config = config_of(objective="dpo")
    config.preference.beta, config.preference.nll = 0.5, 1.0
    assert objective_of(config, "arm") == Preference(0.5, nll=1.0)
    assert objective_of(config_of(objective="frodo"), "arm") == Frodo()
    assert objective_of(config_of(), "arm") is None
    assert arms_of(config)["arm"].objective == "dpo"
    two = default_config()
    two.arms = {"one": {"label": "1"}, "two": {"label": "2", "objective": "dpo"}}
    assert len({about.cell for about in arms_of(two).values()}) == 2


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ({"objective": "ppo"}, {}, "arms.arm.objective is 'ppo'; there are sft, dpo, frodo"),
        ({"rejected": "x.jsonl"}, {}, "arms.arm.rejected is x.jsonl, but its objective is 'sft'"),
        ({"objective": "dpo", "rejected": "/no"}, {}, "arms.arm.rejected: /no: no such file"),
        ({"objective": "dpo", "direct_share": 0.5}, {}, "pairs are of reasoned responses"),
        ({"objective": "dpo"}, {"preference.beta": 0.0}, "beta must be more than 0"),
        ({"objective": "dpo"}, {"preference.pairs": "x"}, "there are step, trajectory"),
        ({"objective": "dpo"}, {"preference.pairs": "trajectory"}, "need a file or records"),
        ({"objective": "frodo"}, {"preference.pairs": "trajectory"}, "are for 'dpo'"),
        ({"objective": "frodo"}, {"preference.frodo.margin": -1.0}, "margin -1.0"),
        ({"objective": "dpo"}, {"data.past_thoughts": True}, "set data.history to 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arm, changes, words):
    config = config_of(**arm)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError) as error:
        check_arms(config)
    assert words in str(error.value)
