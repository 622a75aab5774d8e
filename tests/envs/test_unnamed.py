"""Thoughts that do not name the action: what they leave out, and that nothing else changes."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from cotjax.assets import BASE_FOLDER
from cotjax.cli.main import main
from cotjax.data.trajectories import Trajectory, read_trajectories
from cotjax.envs.alfworld import WORLD
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.envs.alfworld.scripted.explorer import Explorer
from cotjax.envs.alfworld.scripted.intent import Intent
from cotjax.envs.alfworld.scripted.phrases import VOCABULARY
from cotjax.envs.alfworld.scripted.thoughts import MOST_WORDS
from cotjax.envs.alfworld.tasks import TASK_TYPES
from cotjax.envs.base import Observation
from cotjax.errors import UsageError
from cotjax.rollout.collect import Collecting, collect

NAMED_THOUGHTS = "dcade1bda70dc856"


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> dict[str, list[Trajectory]]:
    """Episodes with named thoughts, of the expert (with slips) and of two explorers."""
    folder = tmp_path_factory.mktemp("unnamed")
    games = make_games(folder / "games", {"train": dict.fromkeys(TASK_TYPES, 4)}, seed=11)
    played = {}
    for agent, settings in (
        ("expert", Collecting("expert", 0, mistakes=0.3, only_won=False)),
        ("explorer", Collecting("explorer", 0, only_won=False, episodes_per_game=2, news=0.9)),
    ):
        collect(WORLD, games, folder / f"{agent}.jsonl", settings)
        played[agent] = list(read_trajectories(folder / f"{agent}.jsonl"))
    return played


def replayed(trajectory: Trajectory, agent: Expert) -> list[tuple[str | None, str]]:
    """Return an agent's thoughts and actions on the observations of an episode."""
    steps = [
        Observation(step.observation, step.admissible_commands, won=False, done=False)
        for step in trajectory.steps
    ]
    agent.start(trajectory.task, steps[0])
    decisions = [agent.act(observation) for observation in steps]
    return [(decision.thought, decision.action) for decision in decisions]


def experts(trajectories: list[Trajectory], thoughts: str, seeds: int = 1):
    """Yield (trajectory, expert of these thoughts), for several seeds of the wording."""
    for trajectory in trajectories:
        for more in range(seeds):
            seed, mistakes = trajectory.seed + more, 0.0 if more else 0.3
            yield trajectory, Expert(seed, mistakes=mistakes, thoughts=thoughts)


def names(command: str) -> list[str]:
    intent = Intent.parse(command)
    assert intent is not None
    return [name for name in (intent.thing, intent.place) if name]


def test_no_thought_names_the_action_its_objects_or_its_place(episodes):
    told: dict[str, list[bool]] = {}
    agents = [*experts(episodes["expert"], "unnamed", seeds=5)]
    agents += [
        (trajectory, Explorer(trajectory.seed + more, skill, 0.9, "unnamed"))
        for trajectory in episodes["explorer"]
        for more, skill in enumerate((0.2, 0.5, 0.8))
    ]
    for trajectory, agent in agents:
        for thought, action in replayed(trajectory, agent):
            if thought is None:
                continue
            says = any(re.search(rf"\b{name}\b", thought) for name in names(action))
            told.setdefault(action.split()[0], []).append(says or action in thought)
            assert len(thought.split()) <= MOST_WORDS
    assert sum(map(len, told.values())) > 3000
    assert {"go", "take", "move", "open", "use", "heat", "cool", "clean", "examine"} <= set(told)
    assert {verb: sum(says) for verb, says in told.items() if any(says)} == {}


def test_the_kind_of_thought_changes_neither_episode_nor_action(episodes):
    for trajectory, agent in experts(episodes["expert"], "unnamed"):
        unnamed = replayed(trajectory, agent)
        assert [action for _, action in unnamed] == [step.action for step in trajectory.steps]
        for (thought, _), step in zip(unnamed, trajectory.steps, strict=True):
            assert (thought is None) == (step.thought is None)
            assert thought is None or thought != step.thought


def test_named_thoughts_have_not_changed(episodes):
    """The hash is of the thoughts before there were unnamed ones: models were trained on them."""
    named = [
        [trajectory.id, step.thought]
        for agent in ("expert", "explorer")
        for trajectory in episodes[agent]
        for step in trajectory.steps
    ]
    assert hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16] == NAMED_THOUGHTS


def test_a_thought_says_goal_hand_and_reason(episodes):
    for trajectory, agent in experts(episodes["expert"], "unnamed"):
        for thought, _ in replayed(trajectory, agent):
            sentences = [] if thought is None else thought.removesuffix(".").split(". ")
            assert thought is None or len(sentences) >= 3
            assert thought is None or re.search(r"hand|hold|have nothing", sentences[1])


def test_the_shipped_base_knows_every_word(episodes):
    known = set(json.loads((BASE_FOLDER / "tokenizer.json").read_text())["model"]["vocab"])
    assert known >= VOCABULARY
    for trajectory, agent in experts(episodes["expert"], "unnamed"):
        for thought, _ in replayed(trajectory, agent):
            assert set(re.findall(r"[a-z]+|\d+", thought or "")) <= known


def test_the_command_line_takes_a_kind_and_refuses_one_that_the_world_lacks(tmp_path: Path):
    game = make_games(tmp_path / "games", {"train": {TASK_TYPES[0]: 1}}, seed=1)
    out = tmp_path / "cli.jsonl"
    command = ["collect", "--games", str(tmp_path / "games"), "--out", str(out), "--workers", "1"]
    assert main([*command, "--thoughts", "unnamed"]) == 0
    (trajectory,) = read_trajectories(out)
    assert not any(step.action in (step.thought or "") for step in trajectory.steps)
    assert main([*command, "--thoughts", "silent"]) == 2
    with pytest.raises(UsageError, match="writes no 'silent' thoughts; there are named and unnam"):
        collect(WORLD, game, tmp_path / "x.jsonl", Collecting("expert", 0, thoughts="silent"))
