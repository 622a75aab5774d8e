"""What a tokenizer cannot write is said before anything is trained, domain by domain."""

import sys

import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.data.codec import Codec
from cotjax.data.trajectories import SCRIPTED_BEFORE, Step, Trajectory
from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.formats import CHATML
from cotjax.study.spelling import as_written, check_spelling, unwritable
from cotjax.weights.huggingface import save_hf

TEXTS = (
    "Your task is to: put plate 1 in/on shelf 1. move to You see a.",
    "search: answer: Bel Tor Na yard, O'Na",
    "[cd(folder='document')] done",
)


def episode(*actions, seen="You see a plate 1.", task="put a plate 1"):
    steps = tuple(Step(seen, "a plate.", action, SCRIPTED_BEFORE, ()) for action in actions)
    return Trajectory(
        id=str(actions),
        environment="w",
        split="train",
        task=task,
        task_type="t",
        game="g",
        steps=steps,
        success=True,
        reward=1.0,
        seed=0,
        agent="expert",
    )


def checked(world, **episodes):
    codec, said = Codec(build_word_tokenizer(TEXTS), CHATML), []
    check_spelling(load_world(world), codec, {d: [e] for d, e in episodes.items()}, said.append)
    return said


def test_an_action_that_comes_out_otherwise_is_refused_with_domain_word_and_way_out():
    right = episode("move plate 1 to shelf 1", "put plate 1")
    with pytest.raises(UsageError) as caught:
        checked("alfworld", in_domain=right, ood_grammar=episode("put plate 1 in/on shelf 1"))
    message = str(caught.value)
    assert message.startswith("domain 'ood_grammar': the tokenizer cannot write 'in/on': of the ")
    assert "'put plate 1 in/on shelf 1' it makes 'put plate 1 in / on shelf 1', and 1 of" in message
    assert "leave ood_grammar out of games.ood_domains" in message and "\n" not in message
    with pytest.raises(UsageError, match=r"cannot write 'cup': .* makes 'put \[UNK\] 1'") as caught:
        checked("alfworld", in_domain=episode("put plate 1", "put cup 1"))
    assert "1 of the 2 actions" in str(caught.value) and "games.ood_domains" not in str(
        caught.value
    )


def test_words_that_observations_lose_are_counted_and_said():
    seen = episode("put plate 1", "put plate 1", seen="You see a cup, a cup.", task="put a pan")
    (line,) = checked("alfworld", in_domain=episode("put plate 1"), ood=seen)
    assert line.startswith("warning: domain 'ood': the tokenizer does not know 5 of ")
    assert "such as 'cup', 'pan'" in line and line.endswith("or leave ood out of games.ood_domains")
    codec = Codec(build_word_tokenizer(TEXTS), CHATML)
    found = unwritable(load_world("alfworld"), codec, [seen])
    assert found.unknown == {"cup": 4, "pan": 1} and found.pieces == 2 * 8 + 9
    assert (found.actions, found.wrong) == (1, {})


@pytest.mark.parametrize(
    ("world", "action", "word"),
    [
        ("search_qa", "search: Bel Tor Na yard", None),  # read by its words
        ("search_qa", "answer: Bel Tor Na", None),
        ("search_qa", "answer: O'Na", "O'Na"),  # would be two words
        ("search_qa", "search: Jor", "Jor"),
        ("scienceworld", "put plate 1", None),
        ("bfcl", "done", None),
        ("bfcl", "[cd(folder='document')]", "[cd(folder='document')]"),  # would be ' document '
    ],
)
def test_an_action_is_written_if_the_world_reads_the_same(world, action, word):
    if word is None:
        assert checked(world, ood=episode(action)) == []
    else:
        with pytest.raises(UsageError) as caught:
            checked(world, ood=episode(action))
        assert f"cannot write {word!r}: of the action {action!r}" in str(caught.value)


def test_the_expert_s_actions_are_compared_as_the_model_can_write_them():
    """D1 compares texts, and no word-level model can write "search: a name"."""
    codec = Codec(build_word_tokenizer(TEXTS), CHATML)
    for world, action, written in (
        ("search_qa", "search: Bel Tor Na yard", "search : Bel Tor Na yard"),
        ("search_qa", "search: Jor", "search: Jor"),  # it would be read otherwise, and stays
        ("scienceworld", "put plate 1", "put plate 1"),
    ):
        (step,) = as_written(load_world(world), codec, episode(action)).steps
        assert step.action == written


WORLD = """
from functools import partial
from cotjax.envs.base import Decision, Game, Observation
from cotjax.envs.worlds import IN_DOMAIN, World

RIGHT = {"newer": "move plate", "older": "put plate in/on shelf"}

class Shelves:
    def __init__(self, max_steps):
        pass

    def reset(self, game):
        self.game = game
        return "put the plate away", Observation("You see a shelf.", None, False, False)

    def step(self, action):
        won = action == RIGHT[self.game.task_type]
        return Observation("You see a shelf.", None, won, True)

    def close(self):
        pass

class Expert:
    def start(self, task, observation):
        pass

    def act(self, observation):
        return Decision("so i do it.", self.action)

class ShelfWorld(World):
    name, domains, splits = "shelves", {"newer": IN_DOMAIN, "older": "ood_older"}, ("train", "test")
    agents, lists_commands = ("expert",), False

    def games(self, root, split, left_out=None):
        return [Game(f"{split}-{kind}-{n}", "", split, kind) for kind in self.domains for n in "12"]

    def make_env(self, max_steps, games_kept=None):
        return partial(Shelves, max_steps)

    def agent(self, name, seed, settings):
        expert = Expert()
        expert.action = RIGHT[settings.game.task_type]
        return expert

    def words(self):
        yield "put in / on"

WORLD = ShelfWorld()
"""
FLAGS = ["--config.games.in_domain=2", "--config.games.ood=2", "--config.workers=0"]
REFUSED = "domain 'ood_older': the tokenizer cannot write 'in/on'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelves")
    (folder / "shelf_world.py").write_text(WORLD)
    (folder / "shelves.py").write_text(
        "from cotjax.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config('shelf_world:WORLD')\n"
        "    config.task_types.collect = config.task_types.in_domain\n"
        "    config.model.base = 'random'\n    return config\n"
    )
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def test_nothing_is_trained_with_a_tokenizer_that_cannot_write_a_domain(folder, tmp_path, capsys):
    arguments = ["--config", str(folder / "shelves.py"), "--out", str(tmp_path / "run"), *FLAGS]
    assert main(["train", *arguments]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "domain" in line)
    assert REFUSED in error
    assert not list((tmp_path / "run").rglob("checkpoints"))


def test_a_model_that_is_played_as_it_is_is_checked_too(folder, tmp_path, capsys):
    config = tiny.model_config(vocab_size=64)
    save_hf(tmp_path / "model", config, tiny.params(config))
    texts = ["Your task is to: put the plate away.", "You see a shelf.", "put plate in/on move"]
    save_tokenizer(build_word_tokenizer(texts), tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--world", "shelf_world:WORLD"]
    out = ["--out", str(tmp_path / "run")]
    assert main(["evaluate", *arguments, *out, *FLAGS]) == 2
    assert REFUSED in capsys.readouterr().err
    assert not list((tmp_path / "run" / "records").rglob("*.json"))
