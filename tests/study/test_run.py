"""A miniature study through the command line, from the games to the report, and its errors."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.configs import STUDY

from cotjax.cli.main import main
from cotjax.config import load_config
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import UsageError
from cotjax.rollout.record import read_records
from cotjax.study.ready import check_folder
from cotjax.train.metrics import read_metrics
from cotjax.weights.peft import load_peft


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = folder / "tiny.py"
    config.write_text(STUDY)
    out = folder / "run"
    assert main(["study", "--config", str(config), "--out", str(out)]) == 0
    return config, out


def test_every_part_leaves_what_it_should(study):
    _, out = study
    records = list(read_records(out / "records"))
    played = {(record.arm, record.checkpoint, record.driver) for record in records}
    checkpoints = [("base", 0), ("sft", 2), ("sft", 4), ("reduced", 2), ("reduced", 4)]
    assert played == {
        (arm, step, driver)
        for arm, step in checkpoints
        for driver in ("cot", "prompt", "reference")
    }
    assert len(records) == 5 * 3 * 6
    assert {record.domain for record in records} == {"in_domain", "ood"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["schema_version"] == 4
    assert "<html" in (out / "report.html").read_text()
    assert list((out / "figures").glob("*.png"))
    assert "Playing every checkpoint" in (out / "log.txt").read_text()


def test_what_is_trained_on_and_what_is_left_out_stands_in_the_log_the_run_and_the_report(study):
    _, out = study
    trajectories = list(read_trajectories(out / "trajectories" / "train.jsonl"))
    slips = [sum(not step.trained for step in trajectory.steps) for trajectory in trajectories]
    data = json.loads((out / "run.json").read_text())["data"]
    assert data["left_out"] == {
        "untrained": {"trajectories": sum(map(bool, slips)), "steps": sum(slips)}
    } and sum(slips)
    assert data["trajectories"] == len(trajectories)
    assert data["steps"] == sum(len(trajectory.steps) for trajectory in trajectories) - sum(slips)
    assert data["thought_provenance"] == {"scripted, before the action": data["steps"]}
    assert f"left out: {sum(slips)} steps marked as not trained on" in (out / "log.txt").read_text()
    assert "left_out.untrained.steps" in (out / "report.html").read_text()


def test_ood_task_types_are_never_trained_on(study):
    config, out = study
    held_out = set(load_config(config).task_types.ood)
    trained = {
        json.loads(line)["task_type"]
        for line in (out / "trajectories" / "train.jsonl").read_text().splitlines()
    }
    assert trained and not trained & held_out
    assert {
        record.game.task_type for record in read_records(out / "records") if record.domain == "ood"
    } == held_out


def test_both_actions_of_a_state_come_from_one_prompt(study):
    """Without the CoT branch the first prompt action is the same: branching has no effect."""
    _, out = study
    by_driver = {}
    for record in read_records(out / "records"):
        by_driver.setdefault((record.arm, record.checkpoint, record.game.id), {})[record.driver] = (
            record
        )
    for records in by_driver.values():
        first = [records[driver].steps[0] for driver in ("cot", "prompt", "reference")]
        assert len({step.prompt_length for step in first}) == 1
        assert len({step.prompt.model_dump_json() for step in first}) == 1
        assert first[0].cot == first[2].cot


def test_a_second_run_reuses_everything(study, capsys):
    config, out = study
    stamps = {
        path: path.stat().st_mtime_ns
        for folder in ("records", "arms", "games")
        for path in (out / folder).rglob("*.json")
    }
    summary = (out / "summary.json").read_bytes()
    assert main(["study", "--config", str(config), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert json.loads((out / "summary.json").read_text())["points"] == json.loads(summary)["points"]


@pytest.mark.parametrize("damage", ["lost", "cut", "of another episode"])
def test_a_lost_or_damaged_episode_is_played_again_to_the_same_record(study, damage):
    config, out = study
    path, other = sorted((out / "records" / "sft" / "4" / "cot").glob("*.json"))[:2]
    text = path.read_text()
    before = json.loads(text)
    path.unlink()
    if damage != "lost":
        path.write_text(text[:-100] if damage == "cut" else other.read_text())
    assert main(["evaluate", "--config", str(config), "--out", str(out)]) == 0
    after = json.loads(path.read_text())
    aside = list(path.parent.glob("*.damaged-1"))
    assert len(aside) == (damage != "lost")
    for one in aside:
        one.unlink()
        assert one.name in (out / "log.txt").read_text()
    for record in (before, after):
        del record["timing"]
        for step in record["steps"]:
            for kind in ("cot", "prompt"):
                step[kind]["logprob"] = round(step[kind]["logprob"], 3)
                step[kind]["logprobs"] = [round(logprob, 3) for logprob in step[kind]["logprobs"]]
    assert after == before


def _played(out):
    """((arm, checkpoint, driver, game) -> record without times, all log-probabilities)."""
    records, logprobs = {}, []
    for record in read_records(out / "records"):
        played = record.model_dump(exclude={"timing"})
        for step in played["steps"]:
            for kind in ("cot", "prompt"):
                if step[kind]:
                    logprobs += [step[kind].pop("logprob"), *step[kind].pop("logprobs")]
        records[record.arm, record.checkpoint, record.driver, record.game.id] = played
    return records, logprobs


@pytest.mark.slow
def test_two_processes_make_a_whole_study_and_play_what_one_plays(study, tmp_path):
    """Process 0 makes the files, both train one model, and each plays its share."""
    from helpers.processes import ended, free_address, start_process

    config, first = study
    out, address = tmp_path / "run", free_address()
    arguments = [
        "--config",
        config,
        "--out",
        out,
        f"--config.games.root={first / 'games'}",
        "--devices",
        "2",
    ]
    hosts = ["--coordinator", address, "--processes", "2", "--process-id"]
    command = ["-m", "cotjax.cli", "study", *arguments, *hosts]
    results = ended([start_process([*command, process]) for process in range(2)])
    assert [code for code, _, _ in results] == [0, 0], results
    assert "report.html" in results[0][1] and "Training" not in results[1][1], (
        "process 0 alone tells"
    )
    assert (out / "log.txt").read_text().count("Writing the report") == 1
    for arm in ("sft", "reduced"):
        losses = [
            [row["loss"] for row in read_metrics(run / "arms" / arm / "metrics.jsonl")]
            for run in (out, first)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(json.loads((out / "summary.json").read_text())["points"]) == len(
        json.loads((first / "summary.json").read_text())["points"]
    )

    together, logprobs = _played(out)
    assert len(together) == 5 * 3 * 6
    shutil.rmtree(out / "records")
    assert main(["evaluate", *map(str, arguments[:-2])]) == 0
    alone, expected = _played(out)
    assert alone == together
    np.testing.assert_allclose(logprobs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_cpu_that_is_split_trains_and_plays_as_one_device_does(study, tmp_path):
    from helpers.processes import ended, start_process

    config, first = study
    out = tmp_path / "run"
    split = ["--config.cpu_devices=2", "--devices", "2", f"--config.games.root={first / 'games'}"]
    where = ["--config", str(config), "--out", str(out)]
    ((code, _, error),) = ended(
        [start_process(["-m", "cotjax.cli", "study", *where, *split], devices=None)]
    )
    assert code == 0, error
    assert "on 2 cpu device(s)" in (out / "log.txt").read_text()
    for arm in ("sft", "reduced"):
        losses = [
            [row["loss"] for row in read_metrics(run / "arms" / arm / "metrics.jsonl")]
            for run in (out, first)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-4)

    played, logprobs = _played(out)
    shutil.rmtree(out / "records")
    assert (
        main(["evaluate", *where, split[0], split[-1]]) == 0
    )  # this process has its one device already
    alone, expected = _played(out)
    assert played == alone
    np.testing.assert_allclose(logprobs, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_leaves_as_a_hugging_face_folder(study, tmp_path):
    _, out = study
    assert main(["export", "--run", str(out), "--arm", "sft", "--out", str(tmp_path / "hf")]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "hf").iterdir()
    }
    from cotjax.data.codec import Codec
    from cotjax.weights.huggingface import load_hf

    model, _ = load_hf(tmp_path / "hf")
    assert model.vocab_size >= Codec.load(tmp_path / "hf").vocab_size


def test_a_run_s_checkpoint_is_watched(study, capsys):
    _, out = study
    arguments = [
        "play",
        "--games",
        str(out / "games"),
        "--split",
        "valid_unseen",
        "--run",
        str(out),
        "--arm",
        "sft",
    ]
    assert main([*arguments, "--step", "2"]) == 0
    said = capsys.readouterr().out
    assert "sft, step 2 plays" in said and "Step 3 of 3" in said, (
        "with the run's own limit of steps"
    )
    _fails(capsys, [*arguments, "--step", "3"], 3, "no checkpoint at step 3")
    _fails(capsys, [*arguments, "--arm", "other"], 2, "no arm 'other'")


@pytest.mark.slow
def test_lora_trains_plays_and_leaves_merged_or_as_an_adapter(study, tmp_path):
    from cotjax.assets import BASE_FOLDER
    from cotjax.model import lora
    from cotjax.weights.huggingface import load_hf

    config, out = study
    run = tmp_path / "run"
    arguments = [
        "--config",
        str(config),
        "--out",
        str(run),
        f"--config.games.root={out / 'games'}",
        "--config.model.base=package",
    ]
    arguments += [
        "--config.model.lora_rank=2",
        "--config.train.steps=2",
        r"--config.model.lora_targets=.*\.(q|o|up)_proj",
    ]
    assert main(["train", *arguments]) == 0
    assert main(["evaluate", *arguments]) == 0
    assert len(list(read_records(run / "records"))) == 3 * 3 * 6
    export = ["export", "--run", str(run), "--arm", "sft"]
    assert main([*export, "--out", str(tmp_path / "merged")]) == 0
    assert main([*export, "--adapter", "--out", str(tmp_path / "adapter")]) == 0
    assert main([*export, "--out", str(tmp_path / "adapter")]) == 2, (
        "a folder with an adapter in it is taken"
    )
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(BASE_FOLDER) and described[
        "target_modules"
    ] == ["o_proj", "q_proj", "up_proj"]
    adapted = load_peft(tmp_path / "adapter", *load_hf(BASE_FOLDER))
    assert any(
        np.any(x) for path, x in jax.tree.leaves_with_path(adapted[1]) if path[-1].key == "lora_B"
    )
    jax.tree.map(
        np.testing.assert_array_equal, lora.merge(*adapted)[1], load_hf(tmp_path / "merged")[1]
    )


def test_an_adapter_that_nothing_could_be_done_with_is_not_written(study, capsys, tmp_path):
    _, out = study
    arguments = ["export", "--arm", "sft", "--adapter", "--out", str(tmp_path / "adapter"), "--run"]
    _fails(capsys, [*arguments, str(out)], 2, "model.lora_rank is 0")
    run = tmp_path / "run"
    shutil.copytree(out / "arms" / "sft" / "checkpoints", run / "arms" / "sft" / "checkpoints")
    shutil.copy(out / "config.json", run)
    model = json.loads((out / "model.json").read_text()) | {
        "lora": {"rank": 2, "alpha": 4.0, "targets": ".*q_proj"}
    }
    (run / "model.json").write_text(json.dumps(model))
    _fails(capsys, [*arguments, str(run)], 2, "its base has random weights")


def test_a_converted_folder_serves_as_a_base(study, tmp_path):
    _, out = study
    assert main(["export", "--run", str(out), "--arm", "sft", "--out", str(tmp_path / "hf")]) == 0
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "orbax")]) == 0
    config = tmp_path / "one_arm.py"
    config.write_text(
        STUDY.replace(
            "    return config", '    config.arms = {"sft": config.arms.sft}\n    return config'
        )
    )
    arguments = [
        f"--config.games.root={out / 'games'}",
        f"--config.data.trajectories={out / 'trajectories' / 'train.jsonl'}",
    ]
    arguments += [f"--config.model.base={tmp_path / 'orbax'}", "--config.train.steps=2"]
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run"), *arguments]) == 0
    assert (
        main(
            [
                "export",
                "--run",
                str(tmp_path / "run"),
                "--arm",
                "sft",
                "--step",
                "0",
                "--out",
                str(tmp_path / "again"),
            ]
        )
        == 0
    )
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), (
            name
        )


def _fails(capsys, arguments, code, *words):
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("cotjax: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error


def test_another_config_in_the_same_folder_is_refused(study, capsys):
    config, out = study
    before = (out / "config.json").read_bytes()
    arguments = ["study", "--config", str(config), "--out", str(out), "--config.train.steps=9"]
    _fails(capsys, arguments, 2, str(out), "train.steps is 4 there, 9 here", "--out")
    assert (out / "config.json").read_bytes() == before


def test_settings_of_playing_may_change_until_an_episode_is_recorded(study, capsys, tmp_path):
    config, out = study
    arguments = ["evaluate", "--config", str(config), "--out", str(out)]
    for name, there, here in (
        ("temperature", 0.0, 0.5),
        ("max_length", 2048, 1024),
        ("max_steps", 3, 4),
        ("cot_prefix", "''", "'x'"),
    ):
        words = (
            f"evaluate.{name} is {there} there, {here} here",
            "90 episodes were played with it",
            "to play all again",
        )
        _fails(
            capsys, [*arguments, f"--config.evaluate.{name}={str(here).strip(chr(39))}"], 2, *words
        )
    free = ("slots=2", "tensor=1", "step_timeout=7.0", "env_retries=1")
    assert main([*arguments, *(f"--config.evaluate.{one}" for one in free)]) == 0
    changed = load_config(
        config, ["evaluate.temperature=0.5", "evaluate.max_length=1024", "games.ood=1"]
    )
    mine = json.loads(changed.to_json_best_effort())
    with pytest.raises(UsageError, match=r"games\.ood is 2 there, 1 here"):
        check_folder(out, mine)
    unplayed = tmp_path / "unplayed"
    shutil.copytree(out, unplayed, ignore=shutil.ignore_patterns("records", "held_out.jsonl"))
    check_folder(unplayed, mine)


def test_collected_trajectories_that_changed_are_named(study, capsys, tmp_path):
    """Those that training was begun with, and those that the games are played beside."""
    config, out = study
    run = tmp_path / "run"
    shutil.copytree(out, run)
    arguments = ["--config", str(config), "--out", str(run), f"--config.games.root={out / 'games'}"]
    kept = json.loads((run / "config.json").read_text())
    kept["games"]["root"] = str(out / "games")
    (run / "config.json").write_text(json.dumps(kept))
    for command, name in (("train", "train.jsonl"), ("evaluate", "held_out.jsonl")):
        file = run / "trajectories" / name
        text = file.read_text()
        file.write_text("".join(text.splitlines(keepends=True)[1:]))
        _fails(capsys, [command, *arguments], 2, str(file), "changed")
        file.write_text(text)
    assert main(["study", *arguments]) == 0
    assert json.loads((run / "run.json").read_text())["made_from"]["base"] == {
        "recipe": "random",
        "recall_steps": 0,
    }


def test_a_folder_with_other_things_is_refused(study, capsys, tmp_path):
    (tmp_path / "thesis.tex").touch()
    arguments = ["study", "--config", str(study[0]), "--out", str(tmp_path)]
    _fails(capsys, arguments, 2, str(tmp_path), "not empty")
    # A model has a config.json too.
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    _fails(capsys, arguments, 2, str(tmp_path), "not empty")
    assert (tmp_path / "config.json").read_text() == '{"model_type": "qwen3"}'


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("--config.train.steps=0", 2, ["train.steps is 0"]),
        ("--config.train.stepz=4", 2, ["train.stepz", "did you mean 'train.steps'"]),
        ("--config.games.source=web", 2, ["games.source", "made, alfworld"]),
        ("--config.data.trajectories=/none/t.jsonl", 3, ["/none/t.jsonl"]),
        ("--config.data.layout=turn", 2, ["data.layout", "trajectory, step"]),
        ("--config.data.history=2", 2, ["data.history", "the layout 'step'"]),
        (
            "--config.data.layout=step --config.data.history=2",
            2,
            ["data.history=2", "games.in_domain"],
        ),
        ("--config.data.past_thoughts=True", 2, ["data.past_thoughts=True", "games.in_domain"]),
        ("--config.model.base=/none", 2, ["/none", "config.json"]),
        ("--config.model.lora_rank=-1", 2, ["model.lora_rank is -1"]),
        (
            "--config.model.lora_rank=2 --config.model.lora_targets=wq",
            2,
            ["'wq' match no projection", "self_attn.q_proj"],
        ),
        ("--config.evaluate.slots=0", 2, ["evaluate.slots is 0"]),
        ("--config.train.keep_last=2", 2, ["train.keep_last is 2", "plays every checkpoint"]),
        (
            "--config.evaluate.step_timeout=0.0",
            2,
            ["evaluate.step_timeout is 0", "more than 0 seconds"],
        ),
        ("--config.evaluate.env_retries=-1", 2, ["evaluate.env_retries is -1"]),
        ("--config.masking.supervised=PAD", 2, ["cannot be trained on"]),
        ("--config.masking.unit=word", 2, ["masking: unknown unit 'word'", "example, turn, token"]),
        (
            "--config.masking.normalizer=mean",
            2,
            ["masking.normalizer", "token_sum, example_mean, fixed_budget"],
        ),
        ("--config.arms.reduced.fraction=1.5", 2, ["arms.reduced: masking:", "0..1"]),
    ],
)
def test_bad_input_is_one_clear_line(study, capsys, tmp_path, override, code, words):
    arguments = [
        "study",
        "--config",
        str(study[0]),
        "--out",
        str(tmp_path / "run"),
        *override.split(),
    ]
    if "games.source" not in override:
        arguments.append(f"--config.games.root={study[1] / 'games'}")
    _fails(capsys, arguments, code, *words)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM after step"),
        (signal.SIGINT, 130, "interrupted after step"),
    ],
)
def test_a_signal_ends_training_with_its_code(study, capsys, tmp_path, number, code, words):
    """Sent when the first rows are there; the loop saves the step that it is in."""
    before = signal.getsignal(number)
    rows = tmp_path / "run" / "arms" / "reduced" / "metrics.jsonl"  # the arm that is trained first

    ended = threading.Event()

    def send():
        while not ended.wait(0.01):
            if rows.exists() and rows.read_text():
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    arguments = [
        "train",
        "--config",
        str(study[0]),
        "--out",
        str(tmp_path / "run"),
        f"--config.games.root={study[1] / 'games'}",
    ]
    assert (
        main([*arguments, "--config.train.steps=100000", "--config.train.save_every=50000"]) == code
    )
    ended.set()
    sender.join()
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"cotjax: {words}") and said[-1].endswith(
        "which is saved; the same command resumes"
    )
    saved = sorted(int(path.name) for path in (rows.parent / "checkpoints").iterdir())
    assert len(saved) == 2 and saved[1] == len(rows.read_text().splitlines())
    assert signal.getsignal(number) is before


def test_real_data_without_a_folder_or_games_says_so(study, capsys, tmp_path, monkeypatch):
    base = ["study", "--config", str(study[0]), "--config.games.source=alfworld"]
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    _fails(capsys, [*base, "--out", str(tmp_path / "a")], 2, "ALFWORLD_DATA")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "missing"))
    assert main([*base, "--out", str(tmp_path / "b")]) in (2, 3)
    assert "missing" in capsys.readouterr().err


def test_a_game_file_that_is_cut_short_is_named(study, capsys, tmp_path):
    games = tmp_path / "games"
    shutil.copytree(study[1] / "games", games)
    broken = sorted((games / "train").rglob("game.tw-pddl"))[0]
    broken.write_text(broken.read_text()[:2000])
    arguments = [
        "study",
        "--config",
        str(study[0]),
        "--out",
        str(tmp_path / "run"),
        "--config.games.source=alfworld",
        f"--config.games.root={games}",
    ]
    _fails(capsys, arguments, 3, str(broken))


def test_a_broken_trajectory_line_is_named(study, capsys, tmp_path):
    lines = (study[1] / "trajectories" / "train.jsonl").read_text().splitlines()
    path = tmp_path / "mine.jsonl"
    path.write_text(lines[0] + "\n" + lines[1][:50] + "\n")
    arguments = [
        "train",
        "--config",
        str(study[0]),
        "--out",
        str(tmp_path / "run"),
        f"--config.data.trajectories={path}",
    ]
    _fails(capsys, [*arguments, f"--config.games.root={study[1] / 'games'}"], 3, f"{path}:2: ")


def test_help_reads_well_everywhere(capsys):
    for command in (
        [],
        ["demo"],
        ["study"],
        ["train"],
        ["evaluate"],
        ["report"],
        ["games", "make"],
        ["collect"],
        ["export"],
        ["export", "tables"],
        ["view"],
        ["bench", "viewer"],
        ["convert"],
        ["replay"],
        ["bench", "env"],
        ["bench", "data"],
        ["data", "check"],
        ["data", "import"],
        ["bench", "faults"],
        ["play"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        assert "usage: cotjax" in capsys.readouterr().out


def test_the_shipped_configs_only_name_games_that_can_be_made():
    from cotjax.envs.worlds import load_world
    from cotjax.study.games import made_counts

    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.py")):
        config = load_config(path)
        for types in made_counts(config).values():
            assert set(types) <= set(load_world(config.world).task_types) and all(
                count > 0 for count in types.values()
            )
