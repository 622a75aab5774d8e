"""Ctrl-C while an environment hangs ends the program, long before the environment's time limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cotjax.envs.base import Game, Observation

# Two games in two slots, of one half or of one half each. Game b hangs at its second step.
PLAYS = """
import sys
from functools import partial
from pathlib import Path
from helpers import tiny
from test_interrupt import Hanging, game
from helpers.rollouts import RulePolicy
from cotjax.envs.base import plays_of
from cotjax.envs.pool.pool import EnvPool
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import play

folder, workers, halves = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
codec = tiny.word_codec(folder / "tokenizer", tiny.TINY_WORDS)
slots, hanging = 2 // halves, partial(Hanging, str(folder))
with EnvPool(hanging, slots, workers) as pool, EnvPool(hanging, slots, workers) as other:
    play(
        plays_of([game(name) for name in sys.argv[4]]),
        policy=RulePolicy(codec, slots),
        codec=codec,
        environments=pool,
        second_half=(RulePolicy(codec, slots), other) if halves == 2 else None,
        driver="cot",
        elicitation=Elicitation(),
        seed=0,
        on_record=lambda game, record: None,
    )
"""


def game(id_: str) -> Game:
    return Game(id_, "", "train", "pick_and_place_simple")


class Hanging:
    """Its second step never ends."""

    def __init__(self, folder: str):
        self._folder, self._steps = Path(folder), 0

    def reset(self, game: Game) -> tuple[str, Observation]:
        self._game, self._steps = game.id, 0
        return "put a plate in fridge", Observation(
            "You see a cabinet 1, a cabinet 2, and a fridge 1.", ("look",), False, False
        )

    def step(self, action: str) -> Observation:
        self._steps += 1
        if self._steps == 2 and self._game == "b":
            (self._folder / "hangs").touch()
            while True:
                time.sleep(1000)
        return Observation(f"You open the cabinet {self._steps}.", ("look",), False, False)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("workers", "halves", "games"), [(0, 1, "ab"), (2, 1, "ab"), (2, 2, "ab"), (2, 2, "ba")]
)
def test_an_interrupt_ends_a_rollout_whose_environment_hangs(tmp_path, workers, halves, games):
    path = os.pathsep.join([str(Path(__file__).parent), *map(str, sys.path)])
    command = [sys.executable, "-c", PLAYS, str(tmp_path), str(workers), str(halves), games]
    run = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 60
    while not (tmp_path / "hangs").exists():
        assert run.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode in (1, 130, -signal.SIGINT) and "KeyboardInterrupt" in said
