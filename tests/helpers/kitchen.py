"""A tiny world with an expert, and a random model that `evaluate` plays in it."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import jax

from cotjax.config import default_config
from cotjax.envs.base import Game, Observation
from cotjax.envs.worlds import IN_DOMAIN, OOD, World
from cotjax.model.params import init_params
from cotjax.study.evaluate import evaluate
from cotjax.study.games import GameSets
from cotjax.study.players import LocalPlayer, sampler_of
from helpers import tiny
from helpers.probing import checkpoint_of


class Kitchen:
    """Nine cabinets, of which one hides a plate: that of the game's number."""

    def __init__(self, max_steps):
        self.max_steps = max_steps

    def reset(self, game):
        self.number, self.steps = int(game.id[1:]), 0
        return "put a plate in fridge", self._see("You see a cabinet 1, a cabinet 2.", False)

    def step(self, action):
        self.steps += 1
        opens = action.startswith("open cabinet")
        text = "You open the cabinet 1." if opens else "Nothing happens."
        return self._see(text, action == f"open cabinet {self.number}", opens)

    def _see(self, text, won, accepted=True):
        commands = (f"open cabinet {self.steps + 1}", "look")
        return Observation(text, commands, won, won or self.steps >= self.max_steps, accepted)

    def close(self):
        pass


class Kitchens(World):
    name = "kitchen"
    domains: ClassVar = {"pick_and_place_simple": IN_DOMAIN, "pick_two": OOD}
    splits = ("train", "test")

    def games(self, root, split, left_out=None):
        return [Game(f"g{number}", "", split, "pick_and_place_simple") for number in range(1, 5)]

    def make_env(self, max_steps, games_kept=None):
        return partial(Kitchen, max_steps)


KITCHEN = Kitchens()
GAMES = tuple(KITCHEN.games("", "test"))
# Game -> the expert's episode of as many steps as its number.
EXPERT = {
    game.id: tiny.trajectory(game.id, number + 1, game=game.id) for number, game in enumerate(GAMES)
}


@cache
def codec():
    """Return a codec that spells every text, and whose tags are one token each."""
    return tiny.subword_codec("<action>", "</action>", "<think>", "</think>", "<|im_end|>")


@cache
def model():
    """Return a decoder of one layer and its weights, under which some responses are valid."""
    config = tiny.model_config(vocab_size=codec().vocab_size, layers=1)
    return config, jax.tree.map(lambda x: 2 * x, init_params(config, jax.random.key(1)))


def config_of(**evaluate_settings):
    """Return a config that plays this world at temperature 1, in this process."""
    config = default_config("helpers.kitchen:KITCHEN")
    config.workers = 0
    config.evaluate.update(
        {
            "slots": 2,
            "max_length": 500,
            "max_steps": 3,
            "max_new_tokens": 24,
            "max_action_tokens": 24,
            "temperature": 1.0,
        }
        | evaluate_settings
    )
    return config


def weights(digest="hash"):
    """Return where the model's weights come from."""
    return SimpleNamespace(
        digest=lambda step: digest,
        restore_params=lambda step, config, mesh: jax.device_put(model()[1]),
    )


class Plays:
    """A player with one policy."""

    def __init__(self, policy):
        self.policy, self.slots = policy, policy.slots
        self.codec, self.template = policy.codec, policy.codec.template

    def policies(self, job, number):
        return [self.policy] * number


def unlisted():
    """Return the expert's episodes as a world gives them that lists no commands."""
    return {
        game: replace(
            each,
            steps=tuple(replace(step, admissible_commands=()) for step in each.steps),
        )
        for game, each in EXPERT.items()
    }


def play_in(folder: Path, config, games=GAMES, expert=EXPERT, player=None) -> list[str]:
    """Play the base as `cotjax evaluate` does; return what was reported after each episode.

    `player`: what plays; None: the random model.
    """
    reports = []
    evaluate(
        config,
        player=(
            partial(LocalPlayer, config, model()[0], codec())
            if player is None
            else lambda slots: player
        ),
        games=GameSets((), {"in_domain": tuple(games)}, "games"),
        expert=expert,
        arms={},
        records=folder / "records",
        base=weights(),
        report=lambda *report: reports.append(report),
    )
    return reports


def checkpoint_in(folder: Path, config, slots=2, said=None):
    """Return the checkpoint that `play_in` played, with a sampler of so many slots."""

    def load_policy():
        sampler = sampler_of(config.evaluate, model()[0], codec(), tiny.mesh(), slots)
        sampler.load(model()[1])
        return sampler

    return checkpoint_of(folder, load_policy, codec(), step=0, config=config, said=said)
