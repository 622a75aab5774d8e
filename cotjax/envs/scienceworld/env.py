"""Plays ScienceWorld's games (github.com/allenai/ScienceWorld)."""

from __future__ import annotations

import re

from cotjax.envs.base import Game, Observation, in_play
from cotjax.envs.scienceworld.engine import Engine, EngineError, solver
from cotjax.envs.scienceworld.tasks import Loaded
from cotjax.errors import EnvError, UsageError

# What reaches the simulator: an action of this alphabet and at most this length. The longest that
# it lists has some 90 characters. Anything else becomes `_UNKNOWN`, which it refuses.
_ACTION = re.compile(r"[ -~]{1,200}")
_UNKNOWN = "?"
# The simulator's answers to an action that it does not carry out, from its actions' own texts.
_REFUSED = re.compile(
    r"No known action|Ambiguous request|Unknown action|ERROR|<ERROR"
    r"|I'm not sure|It's not clear|Its not clear|You can't|That can't|You must disconnect"
    r"|Connections must specify|Something can't be|That is already|That object"
    r"|The door doesn't appear|The liquids in [^\n]* aren't able"
    r"|[^\n]* (?:is not|isn't|can't be|appears broken|is already|does not contain|is empty, so)"
    r"[^\n]*\Z"
)
_FIRST_ACTION = "look around"


class ScienceWorldEnv:
    """One simulator that plays one game after another; its Java process starts with the first.

    A first observation is the answer to "look around", which is not counted as a step. The score is
    the share of the goal, in the simulator's own weights. A negative one (as for a focus on the
    wrong thing) is a goal missed for good: it ends the episode, and counts as 0.

    Args:
      max_steps: the episode is done after this many steps, won or not.

    Raises:
      UsageError: the package or Java is missing.
    """

    def __init__(self, max_steps: int = 100):
        if max_steps < 1:
            raise UsageError(f"max_steps must be at least 1: got {max_steps}")
        self._max_steps = max_steps
        self._engine = Engine()
        self._game: Game | None = None
        self._steps = 0
        self._done = False

    @property
    def java_pid(self) -> int | None:
        """The id of the Java process, where there is one."""
        return self._engine.pid

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Load `game` and return its task and the first observation.

        Raises UsageError for an id that names no game.
        """
        self._game, loaded = None, Loaded.of(game)
        try:
            task = self._engine.load(loaded)
            text, score, over = self._engine.step(_FIRST_ACTION)
        except EngineError as error:
            raise EnvError(f"{game.id}, reset: ScienceWorld failed ({error})") from error
        self._game, self._steps = game, 0
        return " ".join(task.split()), self._observation(text, score, over)

    def step(self, action: str) -> Observation:
        """Send `action`. One that the simulator refuses is a step too."""
        game = in_play(self._game, self._steps, self._done)
        self._steps += 1
        try:
            answer = self._engine.step(action if _ACTION.fullmatch(action) else _UNKNOWN)
        except EngineError as error:
            where = f"{game.id}, step {self._steps}"
            self._game = None
            raise EnvError(f"{where}: ScienceWorld failed on {action[:200]!r} ({error})") from error
        return self._observation(*answer)

    def close(self) -> None:
        """End the Java process, and the one for gold paths. `reset` starts another."""
        self._game = None
        self._engine.close()
        solver().close()

    def _observation(self, text: str, score: float, over: bool) -> Observation:
        won = round(100 * score) == 100
        self._done = over or won or score < 0 or self._steps >= self._max_steps
        accepted = not _REFUSED.match(text)
        share = min(max(score, 0.0), 1.0)
        return Observation(text.strip(), None, won, self._done, accepted, share)
