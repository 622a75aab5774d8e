"""A world from outside the package, without an expert or a maker, runs a study."""

import json
import re
import shutil
import sys
from io import StringIO
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.config import default_config, load_config
from cotjax.data.trajectories import read_trajectories
from cotjax.envs.pool.pool import EnvPool
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.rollout.record import read_records

WORLD = '''
"""A corridor of five rooms: the goal is a room, and the score is the share of the way to it."""
from functools import partial

from cotjax.envs.base import Game, Observation
from cotjax.envs.worlds import IN_DOMAIN, OOD, World


class Corridor:
    def __init__(self, max_steps):
        self.max_steps = max_steps

    def reset(self, game):
        self.goal, self.room, self.steps = int(game.id[-1]), 0, 0
        return f"reach room {self.goal}", self.see(True)

    def step(self, action):
        move = {"go left": -1, "go right": 1}.get(action, 0)
        accepted = move != 0 and 0 <= self.room + move <= 4
        self.room, self.steps = self.room + move * accepted, self.steps + 1
        return self.see(accepted)

    def see(self, accepted):
        won = self.room == self.goal
        text = f"You are in room {self.room}." if accepted else "You stay."
        done = won or self.steps >= self.max_steps
        return Observation(text, None, won, done, accepted, score=self.room / self.goal)

    def close(self):
        pass


class Corridors(World):
    name = "corridor"
    domains = {"near": IN_DOMAIN, "far": OOD}
    splits = ("train", "test")
    task_text = "Please {task}!"

    def games(self, root, split, left_out=None):
        kinds = {1: "near", 2: "near", 3: "far", 4: "far"}
        return [Game(f"{split}-room-{n}", "", split, kind) for n, kind in kinds.items()]

    def make_env(self, max_steps, games_kept=None):
        return partial(Corridor, max_steps)


CORRIDORS = Corridors()
'''
CONFIG = '''
"""cotjax study on the corridor."""
from cotjax.config import default_config


def get_config():
    config = default_config("corridor_world:CORRIDORS")
    config.workers = 0
    config.games.eval_split, config.games.in_domain, config.games.ood = "test", 2, 2
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 1, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 32
    config.train.steps = config.train.save_every = config.train.batch = 2
    config.train.warmup = 1
    config.train.row_length = config.data.max_length = 256
    config.arms = {"sft": {"label": "standard SFT", "fraction": 0.0}}
    config.evaluate.max_steps, config.evaluate.slots, config.evaluate.max_new_tokens = 2, 4, 8
    config.evaluate.max_length = 256
    return config
'''


def episode(game: str, goal: int) -> dict:
    """A won episode in the trajectory format."""
    steps = [
        {
            "observation": f"You are in room {room}.",
            "thought": f"i am in room {room}, so i go right.",
            "action": "go right",
            "provenance": "written by hand",
            "admissible_commands": [],
        }
        for room in range(goal)
    ]
    split = game.partition("-")[0]
    return {
        "schema_version": 1,
        "id": game,
        "environment": "corridor",
        "split": split,
        "task": f"reach room {goal}",
        "task_type": "near" if goal < 3 else "far",
        "game": game,
        "steps": steps,
        "success": True,
        "reward": 1.0,
        "seed": 0,
        "agent": "me",
    }


@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    """The folder of the world's module, its config and its trajectories."""
    folder = tmp_path_factory.mktemp("corridor")
    (folder / "corridor_world.py").write_text(WORLD)
    (folder / "corridor.py").write_text(CONFIG)
    lines = [episode(f"{split}-room-{n}", n) for split in ("train", "test") for n in range(1, 5)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.slow
def test_a_study_of_another_world_trains_plays_and_reports(corridor):
    out = corridor / "run"
    arguments = ["--config", str(corridor / "corridor.py"), "--out", str(out)]
    arguments.append(f"--config.data.trajectories={corridor / 'mine.jsonl'}")
    for stage in ("train", "evaluate", "report"):
        assert main([stage, *arguments]) == 0
    records = list(read_records(out / "records"))
    assert {(record.world, record.checkpoint) for record in records} == {
        ("corridor", 0),
        ("corridor", 2),
    }
    assert len(records) == 2 * 3 * 4
    assert {record.domain for record in records if record.game.task_type == "far"} == {"ood"}
    for record in records:
        assert record.score is not None or record.driver == "reference"
        assert all(turn.admissible_commands is None for turn in record.steps)
    run = json.loads((out / "run.json").read_text())
    assert run["world"] == "corridor" and run["data"]["held_out_trajectories"] == 4
    assert run["games"]["source"] == "corridor"
    data = json.loads((out / "data.json").read_text())
    assert data["trained_trajectories"] == 2, "far rooms and the split test are not trained on"
    assert "<html" in (out / "report.html").read_text()
    shutil.rmtree(out / "records")
    assert main(["evaluate", *arguments, "--config.evaluate.halves=True"]) == 0
    assert list(map(_untimed, read_records(out / "records"))) == list(map(_untimed, records))
    # The prompt says the world's own words.
    words = json.loads((out / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "Please" in words and "Your" not in words


def _untimed(record):
    """Return the record without what depends on time or rounding."""
    rounded = {kind: {"logprob", "logprobs"} for kind in ("cot", "prompt")}
    return record.model_dump(exclude={"timing": True, "steps": {"__all__": rounded}})


def test_a_person_plays_another_world(corridor, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", StringIO("?\ngo right\ngo right\n"))
    assert (
        main(
            [
                "play",
                "--world",
                "corridor_world:CORRIDORS",
                "--games",
                ".",
                "--split",
                "test",
                "--index",
                "1",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert said.startswith("Please reach room 2!")
    assert "does not list its commands" in said and "score 0.5 of 1]" in said
    assert said.rstrip().endswith("Won after 2 steps, score 1 of 1.")


def test_the_page_on_worlds_has_a_world_that_runs(tmp_path, monkeypatch, capsys):
    """Its expert plays in spawned processes, and its environments in a pool's."""
    page = Path(__file__).parents[2] / "docs" / "worlds.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "drawers.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "expert.jsonl"
    command = ["collect", "--world", "drawers:WORLD", "--out", str(out), "--workers", "2"]
    assert main(command) == 0
    trajectories = list(read_trajectories(out))
    assert len(trajectories) == 9
    assert {(each.environment, each.success) for each in trajectories} == {("drawers", True)}
    world = load_world("drawers:WORLD")
    game = world.games("", "train")[2]
    with EnvPool(world.make_env(5), slots=1, workers=1) as pool:
        task, seen = pool.reset({0: game})[0]
        assert task == "open drawer 3" and len(seen.admissible_commands) == 9
        assert not pool.step({0: "open window"})[0].accepted
        assert pool.step({0: task})[0].won
    sys.modules.pop("drawers")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study"], "world 'corridor' has no expert: give data.trajectories"),
        (["collect", "--games", "."], "world 'corridor' has no expert"),
        (["games", "make"], "world 'corridor' makes no games"),
        (["play", "--game", "x"], "world 'corridor' has no games that are files"),
    ],
)
def test_a_part_that_a_world_lacks_is_named_where_it_is_needed(corridor, capsys, arguments, words):
    out = ["--out", str(corridor / "other")]
    if arguments[0] == "study":
        arguments = [*arguments, "--config", str(corridor / "corridor.py"), *out]
    else:
        arguments = [*arguments, "--world", "corridor_world:CORRIDORS"]
        arguments += [] if "play" in arguments else out
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_world_is_chosen_on_the_command_line_with_its_task_types(corridor):
    config = load_config(
        _alfworld_config(corridor),
        ["world=corridor_world:CORRIDORS"],
    )
    own = default_config("corridor_world:CORRIDORS")
    assert config.task_types.to_dict() == own.task_types.to_dict()
    assert config.games.source == "corridor"


def _alfworld_config(folder):
    path = folder / "usual.py"
    path.write_text("from cotjax.config import default_config\n\nget_config = default_config\n")
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "unknown world 'nowhere'; there are alfworld"),
        ("pool", "unknown world 'pool'"),
        ("no_such_module:WORLD", "No module named 'no_such_module'"),
        ("corridor_world:NOTHING", "NOTHING"),
        ("corridor_world:Corridor", "is no cotjax.envs.worlds.World"),
    ],
)
def test_an_unknown_world_is_one_clear_line(corridor, name, words):
    with pytest.raises(UsageError) as caught:
        load_world(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_another_world_are_refused(corridor, capsys):
    arguments = ["study", "--config", str(corridor / "corridor.py"), "--out", str(corridor / "no")]
    for override, words in (
        ("task_types.ood=heat", "world 'corridor' has no task type 'heat'; there are near, far"),
        ("games.source=made", "unknown games.source 'made'; there are corridor"),
        ("world=mars", "unknown world 'mars'"),
    ):
        assert main([*arguments, f"--config.{override}"]) == 2
        assert words in capsys.readouterr().err
