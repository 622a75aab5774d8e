"""Environments of ScienceWorld that share a Java process, and the simulator's words."""

import importlib.util
import os
import re
import shutil
import signal

import pytest

from cotjax.envs.scienceworld.env import ScienceWorldEnv
from cotjax.envs.scienceworld.world import WORLD
from cotjax.errors import EnvError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("scienceworld") is None or shutil.which("java") is None,
    reason="without the package scienceworld or Java",
)
GAMES = {game.id: game for game in WORLD.games("", "train")}
ANIMAL = GAMES["easy/find-animal/0003"]
LONGEST = GAMES["easy/lifespan-longest-lived/0003"]


@pytest.fixture
def env():
    env = ScienceWorldEnv(max_steps=200)
    yield env
    env.close()


def test_environments_of_one_process_share_java_and_notice_nothing_of_each_other(env):
    """Games played in turn give the answers that they give alone, and outlive each other's end."""
    actions = ("teleport to outside", "wait", "look around", "teleport to kitchen", "look around")
    games = ANIMAL, LONGEST
    alone = {}
    for game in games:
        env.reset(game)
        alone[game] = [env.step(action) for action in actions]
    others = [ScienceWorldEnv(30) for _ in games]
    for other, game in zip(others, games, strict=True):
        other.reset(game)
    assert {other.java_pid for other in others} == {env.java_pid}
    for number, action in enumerate(actions):
        for other, game in zip(others, games, strict=True):
            assert other.step(action) == alone[game][number], (game.id, number)
    others[0].close()
    assert others[1].step("look around").text == alone[LONGEST][-1].text
    # A Java process that dies takes all games with it, each in one clear line, and no later ones.
    dead = env.java_pid
    os.kill(dead, signal.SIGKILL)
    for one, name in ((others[1], LONGEST.id), (env, LONGEST.id)):
        with pytest.raises(EnvError, match=f"{name}, step 7: ScienceWorld failed|{name}, step 6"):
            one.step("look around")
    assert env.reset(ANIMAL)[1].text and others[1].reset(ANIMAL)[1].text
    assert env.java_pid == others[1].java_pid != dead
    others[1].close()


def test_every_word_of_the_simulator_is_known_to_its_word_tokenizer(env):
    words = set(re.findall(r"\w+", " ".join(WORLD.words())))
    assert {"beaver", "Melville", "chameleon", "tertiary", "100"} <= words and len(words) < 2000
    env.reset(GAMES["easy/grow-fruit/0003"])
    for action in ("teleport to outside", "look around", "teleport to workshop", "look around"):
        assert set(re.findall(r"[A-Za-z]+", env.step(action).text)) <= words
