"""A poor but able player of household games: now and then it does what the expert would, otherwise something at random.

Its episodes pretrain a base model that knows the games' words and moves without playing well. Its thoughts are in the expert's
style and as honest: of a step at random they say that it is one.
"""

from __future__ import annotations

from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.errors import UsageError

NO_OP = 0.15  # share of its random steps that the game refuses


class Explorer(Expert):
    """The expert, with a step at random in place of its own wherever a draw exceeds `skill`.

    Args:
      seed: of the choices and of the wording; the same seed and game give the same episode.
      skill: probability, 0 to 1, that a step is the expert's.
      news: share of the other steps whose thought also tells what was just seen.
    """

    def __init__(self, seed: int, skill: float, news: float = 0.4):
        if not 0.0 <= skill <= 1.0:
            raise UsageError(f"skill is a probability, {skill!r} is not between 0 and 1")
        super().__init__(seed, noise=1.0 - skill, news=news, no_op=NO_OP)
        self.skill = skill
