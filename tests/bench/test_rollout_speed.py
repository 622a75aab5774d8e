"""`cotjax bench rollout` at a tiny size, with real processes and real games."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import jax
import pytest
from helpers import tiny
from rich.console import Console

from cotjax.assets import BASE_FOLDER
from cotjax.bench.comparison import check_agreement
from cotjax.bench.jobs import RolloutJob
from cotjax.bench.rollout import Settings, agreement, benchmark
from cotjax.bench.sides import Side
from cotjax.cli.main import main
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.errors import CotjaxError, UsageError
from cotjax.model.params import init_params
from cotjax.weights.huggingface import save_hf


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    root = tmp_path_factory.mktemp("games")
    return root, make_games(
        root,
        {"valid_seen": {"look_at_obj_in_light": 1, "pick_and_place_simple": 1}},
        seed=2,
        workers=1,
    )


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A tiny model with random weights and the shipped base's vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny.model_config(vocab_size=384)
    save_hf(folder, config, init_params(config, jax.random.key(0)))
    shutil.copyfile(BASE_FOLDER / "tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.mark.slow
def test_alone(games, model_folder, capsys):
    root, _ = games
    settings = Settings(model_folder, games=root, episodes=2, slots=1, steps=2, new=8, rounds=2)
    figures = benchmark(settings, Console(width=100))
    ours = figures.pop("cotjax")
    assert not figures
    assert (ours["episodes"], ours["steps"], ours["won"]) == (2, 4, 0)
    assert ours["episodes/min"] == pytest.approx(120 / ours["rollout_s"]) and ours[
        "steps/s"
    ] == pytest.approx(4 / ours["rollout_s"])
    # It never closes a tag: each of the four steps generates 8 tokens of CoT and 16 of the prompt
    # action.
    assert ours["tokens/s"] == pytest.approx(4 * (8 + 16) / ours["rollout_s"])
    assert 0 < ours["busy"] < 1
    assert 0 < ours["hidden"] < 1 and ours["alone_s"] > 0 and ours["prompt_cost"] < 1
    assert ours["programs"] > 0 and ours["compile_s"] > 0
    printed = capsys.readouterr().out
    assert (
        "2 episodes in 1 slots, at most 2 steps; 4 steps, 0 won" in printed
        and "times as fast" not in printed
    )


@pytest.mark.slow
def test_two_halves_hide_the_time_of_environments_that_sleep(games, model_folder, capsys):
    settings = Settings(model_folder, games=games[0], episodes=2, slots=2, steps=2, new=8, rounds=1)
    figures = benchmark(replace(settings, halves=True, latency=0.1), Console(width=100))
    ours = figures["cotjax"]
    for kind in ("cot", "prompt"):
        assert ours[f"{kind}_batch_hidden"] < 0.1 < ours[f"{kind}_waited"]
        assert ours[f"{kind}_halves_hidden"] > ours[f"{kind}_batch_hidden"]
        assert ours[f"{kind}_ratio_low"] <= ours[f"{kind}_ratio"] <= ours[f"{kind}_ratio_high"]
    printed = capsys.readouterr().out
    assert "each environment sleeps 100 ms" in printed
    assert "prompt actions: two halves play" in printed


@pytest.mark.slow
def test_beside_transformers(games, capsys):
    pytest.importorskip("torch")
    root, _ = games
    arguments = [
        "--games",
        str(root),
        "--episodes",
        "2",
        "--steps",
        "8",
        "--rounds",
        "1",
        "--peer",
        "transformers",
    ]
    assert main(["bench", "rollout", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 episodes have the same actions on both sides" in printed
    assert "times as fast as transformers (rounds " in printed.splitlines()[-1]


@pytest.mark.slow
def test_sides_that_play_differently_are_not_compared(games, tmp_path):
    """The baseline's model is another one."""
    pytest.importorskip("torch")
    _, played = games
    job = RolloutJob(
        model=str(BASE_FOLDER),
        template="chatml",
        games=tuple(asdict(game) for game in played),
        folder=str(tmp_path / "pddl"),
        slots=2,
        steps=3,
        new=64,
        weights=str(tmp_path / "weights"),
    )
    sides = [Side(job, tmp_path)]
    try:
        config_file = tmp_path / "weights" / "config.json"
        config = json.loads(config_file.read_text())
        config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 10.0
        config_file.write_text(json.dumps(config))
        sides.append(Side(replace(job, side="transformers"), tmp_path))
        with pytest.raises(
            CotjaxError, match=r"do not play alike: [12] of 2 episodes differ.* step \d: '"
        ):
            agreement(*sides, [game.id for game in played], Console())
    finally:
        for side in sides:
            side.close()


def test_a_few_ties_are_allowed_and_named():
    games = [f"g{number}" for number in range(10)]
    ours = {game: ["look", "open fridge 1"] for game in games}
    assert check_agreement(games, ours, dict(ours), "other") == []
    one = ours | {"g4": ["look", "close fridge 1"]}
    assert check_agreement(games, ours, one, "other") == [
        "g4, step 2: 'open fridge 1' here, 'close fridge 1' there"
    ]
    ended = {"g7": ["look"]}
    assert check_agreement(games, ours, ours | ended, "other") == [
        "g7, step 2: 'open fridge 1' here, None there"
    ]
    with pytest.raises(
        CotjaxError,
        match="2 of 10 episodes differ, more than rounding explains; the first is g4, step 2",
    ):
        check_agreement(games, ours, one | ended, "other")


def test_the_baseline_stops_where_cotjax_stops():
    torch = pytest.importorskip("torch")
    from cotjax.bench.peers import end_of, stopping

    stop = ((5, 6), (7,))
    assert [end_of(ids, stop) for ids in ([1, 5, 6, 7], [6, 5, 7, 1], [5, 1, 6], [])] == [
        3,
        3,
        None,
        None,
    ]
    assert stopping(((5,), (7,)), torch.device("cpu")) == {"eos_token_id": [5, 7]}
    (criterion,) = stopping(stop, torch.device("cpu"))["stopping_criteria"]
    assert criterion(torch.tensor([[1, 5, 6], [5, 6, 1], [1, 1, 7]]), None).tolist() == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"episodes": 0}, "--episodes is 0"),
        ({"rounds": -1}, "--rounds is -1"),
        ({"latency": -1.0}, "--latency must be 0 or more"),
        ({"halves": True, "slots": 1}, "--halves needs two slots"),
        ({"episodes": 3}, "has 2 games in split 'valid_seen'"),
        ({"split": "train"}, "no ALFWorld games of split 'train'"),
        (
            {"model": Path("nowhere")},
            "nowhere: holds neither config.json",
        ),  # found by the worker
    ],
)
def test_settings_that_do_not_fit_are_refused(games, wrong, named):
    with pytest.raises(UsageError, match=named):
        benchmark(Settings(**{"games": games[0], "episodes": 2, **wrong}))


def test_a_baseline_without_torch_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UsageError, match="pip install torch"):
        Side(
            RolloutJob(
                side="transformers",
                model=str(BASE_FOLDER),
                template="chatml",
                games=(),
                folder=str(tmp_path),
            ),
            tmp_path,
        )
