"""A poor player of household games: some steps are the expert's, the others random.

Its episodes pretrain a base model, which learns the words and moves of the games without playing
well. Its thoughts are in the expert's style, and say of a random step that it is one.
"""

from __future__ import annotations

from cotjax.envs.alfworld.scripted.expert import Expert
from cotjax.envs.worlds import NAMED
from cotjax.errors import UsageError

NO_OP = 0.15  # share of its random steps that the game refuses


class Explorer(Expert):
    """The expert, with random steps in place of its own.

    Args:
      seed: of the choices and the wording; the same seed and game give the same episode.
      skill: probability, 0 to 1, that a step is the expert's.
      news: share of the random steps whose thought also says what was just seen.
      thoughts: kind of the thoughts, as in `Expert`.
    """

    def __init__(self, seed: int, skill: float, news: float = 0.4, thoughts: str = NAMED):
        if not 0.0 <= skill <= 1.0:
            raise UsageError(f"skill is a probability, {skill!r} is not between 0 and 1")
        super().__init__(seed, noise=1.0 - skill, news=news, no_op=NO_OP, thoughts=thoughts)
        self.skill = skill
