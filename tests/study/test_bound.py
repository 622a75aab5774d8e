"""Which settings bind a run, and which may change when it resumes, from the command line."""

import json
import shutil

import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from cotjax.cli.main import main
from cotjax.data.trajectories import write_trajectories
from cotjax.runtime.claim import arms_begun
from cotjax.train.metrics import read_metrics

CONFIG = '''
"""Training alone, small enough for a test."""
from cotjax.config import default_config


def get_config():
    config = default_config()
    config.workers = config.games.in_domain = config.games.ood = 0
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 2, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 48
    config.train.steps, config.train.save_every = 4, 2
    config.train.batch, config.train.warmup = 2, 1
    config.train.row_length = config.data.max_length = 256
    config.arms = {"sft": {"label": "standard SFT", "fraction": 0.0}}
    return config
'''


def write_data(path, first=0):
    write_trajectories(
        path, [tiny.trajectory(name=f"t{i}", steps=1 + i % 3) for i in range(first, first + 12)]
    )
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(arguments of a run but its --out, the run's folder)."""
    folder = tmp_path_factory.mktemp("bound")
    (folder / "c.py").write_text(CONFIG)
    data = write_data(folder / "data.jsonl")
    arguments = ["train", "--config", str(folder / "c.py"), f"--config.data.trajectories={data}"]
    assert main([*arguments, "--out", str(folder / "run")]) == 0
    return arguments, folder / "run"


@pytest.fixture
def stopped(trained, tmp_path):
    """The same, stopped after its second update, on a copy of the data."""
    arguments, run = trained
    data = shutil.copy(arguments[-1].partition("=")[2], tmp_path / "data.jsonl")
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["trajectories"] = str(data)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "run" / "arms" / "sft" / "checkpoints" / "4")
    return [
        *arguments[:-1],
        f"--config.data.trajectories={data}",
        "--out",
        str(tmp_path / "run"),
    ], tmp_path


def rows(run):
    return [
        {name: value for name, value in row.items() if name != "time"}
        for row in read_metrics(run / "arms" / "sft" / "metrics.jsonl")
    ]


def fails(capsys, arguments, code, *words):
    capsys.readouterr()
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("cotjax: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error


def test_changed_data_is_refused_before_anything_is_built_and_the_same_goes_on(
    trained, stopped, capsys
):
    arguments, folder = stopped
    data, kept = folder / "data.jsonl", (folder / "data.jsonl").read_bytes()
    write_data(data, first=50)
    fails(
        capsys,
        arguments,
        2,
        "the content of",
        str(data),
        "restore what it was begun with, or choose another folder with --out",
    )
    assert len(list((folder / "run" / "dataset" / "agent_trajectories").iterdir())) == 1
    data.write_bytes(kept)
    assert main(arguments) == 0
    assert rows(folder / "run") == rows(trained[1])


def test_what_the_run_is_made_from_stands_in_its_settings(trained):
    arguments, run = trained
    made_from = json.loads((run / "arms" / "sft" / "settings.json").read_text())["made_from"]
    assert made_from["data"]["file"] == arguments[-1].partition("=")[2]
    assert all(len(made_from[part]["sha256"]) == 64 for part in ("data", "tokenizer"))
    assert made_from["base"] == {"recipe": "random", "recall_steps": 0}


def test_a_run_without_fingerprints_goes_on_with_the_examples_that_it_had(trained, stopped, capsys):
    arguments, folder = stopped
    arm, data = folder / "run" / "arms" / "sft", folder / "data.jsonl"
    settings = json.loads((arm / "settings.json").read_text())
    del settings["made_from"]
    (arm / "settings.json").write_text(json.dumps(settings))
    kept = data.read_bytes()
    write_data(data, first=50)
    fails(capsys, arguments, 2, "kept no fingerprints", str(data))
    data.write_bytes(kept)
    assert main(arguments) == 0
    assert "no fingerprint of its data, tokenizer and base was kept" in capsys.readouterr().err
    assert rows(folder / "run") == rows(trained[1])


@pytest.mark.parametrize("part", ["base", "tokenizer"])
def test_a_changed_base_or_tokenizer_is_refused(trained, capsys, tmp_path, part):
    arguments, run = trained
    base = tmp_path / "base"
    assert main(["export", "--run", str(run), "--arm", "sft", "--out", str(base)]) == 0
    arguments = [
        *arguments,
        "--out",
        str(tmp_path / "run"),
        f"--config.model.base={base}",
        "--config.train.steps=2",
    ]
    assert main(arguments) == 0
    shutil.rmtree(tmp_path / "run" / "arms" / "sft" / "checkpoints" / "2")
    if part == "base":
        tensors = load_file(base / "model.safetensors")
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] + np.float32(0.01)
        save_file(tensors, base / "model.safetensors")
        fails(capsys, arguments, 2, "the base model: the content of", str(base))
    else:
        (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + "\n")
        fails(capsys, arguments, 2, "the tokenizer: the content of", str(base / "tokenizer.json"))


def test_what_changes_no_result_may_change_on_the_command_line(trained, stopped):
    arguments, folder = stopped
    free = [
        "title=another",
        "cpu_devices=2",
        "workers=1",
        "mesh.data=1",
        "train.remat=none",
        "train.accumulate=2",
        "train.scan_layers=True",
        "train.attention=xla",
        "train.keep_last=1",
        "arms.sft.label=renamed",
        "arms.sft.control=action",
        "evaluate.slots=3",
        "evaluate.halves=True",
        "evaluate.tensor=1",
        "evaluate.step_timeout=7.0",
        "evaluate.env_retries=0",
        "evaluate.temperature=0.5",
        "evaluate.max_steps=3",
        "evaluate.elicitations=cot,prompt,cot_constrained",
        "evaluate.offline=prompt_constrained",
        "evaluate.constrained_by=mean",
        "evaluate.episodes_at=4",
    ]
    assert main([*arguments, *(f"--config.{one}" for one in free)]) == 0
    np.testing.assert_allclose(
        *([row["loss"] for row in rows(run)] for run in (folder / "run", trained[1])), rtol=1e-5
    )
    kept = json.loads((folder / "run" / "config.json").read_text())
    assert kept["title"] == "another" and kept["evaluate"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", ["seed is 0 there, 1 here", "sft trained with it"]),
        ("arms.sft.fraction=0.5", ["arms.sft.fraction is 0.0 there, 0.5 here"]),
        ("arms.sft.control=reasoning", ["arms.sft.control is 'action' there, 'reasoning' here"]),
        ("masking.unit=example", ["masking.unit"]),
        ("data.direct_share=0.5", ["data.direct_share"]),
        ("model.width=64", ["model.width"]),
        ("train.learning_rate=0.1", ["train.learning_rate"]),
        ("train.steps=6", ["train.steps is 4 there, 6 here", "--config.train.schedule_steps=4"]),
    ],
)
def test_what_counts_is_bound_by_the_first_update(trained, capsys, override, words):
    arguments, run = trained
    fails(capsys, [*arguments, "--out", str(run), f"--config.{override}"], 2, *words, "--out")


def test_a_finished_run_is_prolonged(stopped):
    arguments, folder = stopped
    assert main([*arguments, "--config.train.steps=6", "--config.train.schedule_steps=4"]) == 0
    assert [row["step"] for row in rows(folder / "run")] == [1, 2, 3, 4, 5, 6]


def test_an_arm_may_join_later(stopped, tmp_path):
    arguments, folder = stopped
    assert main(arguments) == 0
    before = (folder / "run" / "arms" / "sft" / "metrics.jsonl").read_bytes()
    more = CONFIG.replace(
        '"fraction": 0.0}}', '"fraction": 0.0}, "other": {"label": "half", "fraction": 0.5}}'
    )
    (tmp_path / "more.py").write_text(more)
    assert main(["train", "--config", str(tmp_path / "more.py"), *arguments[3:]]) == 0
    assert arms_begun(folder / "run") == ["other", "sft"]
    assert (folder / "run" / "arms" / "sft" / "metrics.jsonl").read_bytes() == before


def test_starts_that_failed_claim_nothing(trained, capsys, tmp_path):
    """Several in one folder, some with their own tokenizer; then the corrected command."""
    arguments, run = trained
    lines = (run.parent / "data.jsonl").read_text().splitlines()
    broken, other = tmp_path / "broken.jsonl", tmp_path / "other.jsonl"
    broken.write_text(lines[0] + "\n{\n")
    write_trajectories(other, [tiny.trajectory(name="zebra", task="put a zebra in fridge")])
    for override, code, words in (
        ("model.base=/none", 2, "/none"),
        ("model.base=qwen3-8b", 2, "a name for plans"),
        ("data.trajectories=/none.jsonl", 3, "/none.jsonl"),
        (f"data.trajectories={broken}", 3, f"{broken}:2"),
        (f"data.trajectories={other} --config.data.max_length=5", 3, str(other)),
        ("data.direct_share=1.5", 2, "data.direct_share is 1.5"),
        ("data.template=llama9", 2, "data.template is 'llama9'"),
        ("seed=100000000000000000000", 2, "seed is 100000000000000000000"),
        ("arms.sft.fraction=1.5", 2, "arms.sft"),
        ("arms.sft.fraction_steps=-1", 2, "arms.sft.fraction_steps is -1"),
        ("collect.agent=nobody", 2, "is called 'nobody'; there are expert and explorer"),
        ("collect.skill=0.5,2.0", 2, "collect.skill"),
        ("mesh.data=64", 2, "mesh"),
        (
            "model.base=package --config.games.in_domain=1 --config.evaluate.max_length=40000",
            2,
            "evaluate.max_length is 40000",
        ),
        ("model.head_size=15", 2, "head_size is 15"),
    ):
        fails(
            capsys,
            [*arguments, "--out", str(tmp_path / "run"), *f"--config.{override}".split()],
            code,
            words,
        )
    assert arms_begun(tmp_path / "run") == []
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert rows(tmp_path / "run") == rows(run)
    assert "zebra" not in (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text()
