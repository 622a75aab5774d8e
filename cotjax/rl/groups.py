"""The endless stream of games, and the groups of plays that a step draws from it.

    stream     g3 g1 g2 | g2 g3 g1 | g1 g3 g2 | ...     each epoch has every game once
    step 1     g3 g1                                    two groups; position 2 comes next
    step 2     g2 g2                                    a game may come twice in a step: two groups

The game at a position is a pure function of the seed, the ids of the games and the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cotjax.envs.base import Game, Play
from cotjax.errors import UsageError
from cotjax.masking import draw


class Stream:
    """Games in an order that is drawn from the seed, each epoch anew.

    The order depends on the games' ids, and not on the order in which they are given.
    """

    def __init__(self, games: Sequence[Game], seed: int):
        """Raises UsageError where there is no game, or two have one id."""
        self._games = {game.id: game for game in games}
        if not games or len(self._games) < len(games):
            raise UsageError(
                "there are no games to play: set games.train"
                if not games
                else f"{len(games)} games have {len(self._games)} ids; give each game once"
            )
        self._seed = seed
        # A step may begin in one epoch and end in the next.
        self._order = lru_cache(maxsize=2)(self._epoch)

    def __getitem__(self, position: int) -> Game:
        """Return the game at a position, from 0 on."""
        epoch, place = divmod(position, len(self._games))
        return self._games[self._order(epoch)[place]]

    def _epoch(self, epoch: int) -> list[str]:
        return sorted(self._games, key=lambda id: (draw(self._seed, f"stream/{id}", epoch), id))


@dataclass(frozen=True)
class Group:
    """All plays of one game in one step.

    position: of the game in the stream, which names the group: a game may come twice in a step.
    plays: no two groups of a step share one.
    """

    position: int
    plays: tuple[Play, ...]

    @property
    def game(self) -> Game:
        """The game that is played."""
        return self.plays[0].game


def groups_at(stream: Stream, begin: int, start: int, count: int, size: int) -> list[Group]:
    """Return the groups of `count` games from position `start` on.

    `begin`: the position at which the step begins. `size`: plays of a group. The samples of a
    game that comes again in a step are numbered on, so that they differ from the first ones.
    """
    groups = []
    for position in range(start, start + count):
        game = stream[position]
        before = sum(stream[earlier].id == game.id for earlier in range(begin, position))
        samples = range(before * size, (before + 1) * size)
        groups.append(Group(position, tuple(Play(game, sample) for sample in samples)))
    return groups
