"""Keys: a world for reinforcement learning in a minute, of one step and one hidden rule.

    Your task is to: use the gold key.
    You see door 3, door 1, door 6, door 2, door 5 and door 4.
    <think> the gold key is for door 2. </think><action> open door 2 </action>

Each of six keys opens one door, and nothing that is shown says which. The explorer guesses: its
thoughts say what it tries, and who is trained on them knows the format and no rule. So every gain
of what follows is the rule's, and a policy wins one game in six before it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType

from cotjax.envs.base import Agent, Decision, Game, Observation, in_play
from cotjax.envs.worlds import IN_DOMAIN, AgentSettings, World
from cotjax.errors import EnvError

RULE = {"red": 4, "blue": 1, "green": 6, "white": 2, "black": 5, "gold": 3}
DOORS = tuple(RULE.values())
COMMANDS = tuple(f"open door {door}" for door in sorted(DOORS))
# Split -> arrangements of the doors with which each key is played.
_ARRANGEMENTS = {"train": 8, "test": 4}


class Keys:
    """One environment, which plays one game at a time."""

    def __init__(self, max_steps: int):
        self._max_steps = max_steps
        self._game: Game | None = None
        self._steps, self._done = 0, False

    def reset(self, game: Game) -> tuple[str, Observation]:
        self._game, self._steps, self._done = game, 0, False
        doors = [f"door {door}" for door in sorted(DOORS)]
        random.Random(game.id).shuffle(doors)
        text = f"You see {', '.join(doors[:-1])} and {doors[-1]}."
        return f"use the {_colour(game)} key", Observation(text, COMMANDS, False, False)

    def step(self, action: str) -> Observation:
        game = in_play(self._game, self._steps, self._done)
        self._steps += 1
        accepted = action in COMMANDS
        won = action == f"open door {RULE[_colour(game)]}"
        self._done = won or self._steps >= self._max_steps
        text = "It opens." if won else "It stays shut." if accepted else "Nothing happens."
        return Observation(text, COMMANDS, won, self._done, accepted)

    def close(self) -> None:
        pass


def _colour(game: Game) -> str:
    colour = game.id.split("-")[1]
    if colour not in RULE:
        raise EnvError(f"{game.id}, step 0: there is no {colour} key")
    return colour


class _Guesser:
    """Opens a door; `knows`: the right one."""

    def __init__(self, seed: int, knows: bool):
        self._random, self._knows = random.Random(f"keys/{seed}"), knows

    def start(self, task: str, observation: Observation) -> None:
        self._key = task.split()[2]

    def act(self, observation: Observation) -> Decision:
        door = RULE[self._key] if self._knows else self._random.choice(sorted(DOORS))
        return Decision(f"the {self._key} key is for door {door}.", f"open door {door}")


class KeysWorld(World):
    name = "keys"
    title = "keys"
    domains = MappingProxyType({"keys": IN_DOMAIN})
    splits = tuple(_ARRANGEMENTS)
    agents = ("expert", "explorer")

    def games(self, root: object, split: str, left_out: Counter[str] | None = None) -> list[Game]:
        arrangements = range(_ARRANGEMENTS.get(split, 0))
        names = sorted(f"{split}-{colour}-{n}" for colour in RULE for n in arrangements)
        return [Game(name, "", split, "keys") for name in names]

    def make_env(self, max_steps: int, games_kept: int | None = None) -> Callable[[], Keys]:
        return partial(Keys, max_steps)

    def words(self) -> Iterator[str]:
        yield from (f"use the {colour} key" for colour in RULE)
        yield from COMMANDS
        yield "You see door 1, door 2 and door 3. It opens. It stays shut. Nothing happens."

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        self.check_agent(name)
        return _Guesser(seed, knows=name == "expert")


WORLD = KeysWorld()
