"""A replay is checked observation by observation."""

from __future__ import annotations

import pytest

from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.replay import replay
from cotjax.errors import EnvError, UsageError


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """An environment, a game, its actions and the observations, first one included."""
    folder = tmp_path_factory.mktemp("replay")
    (game,) = make_games(folder, {"train": {"pick_and_place_simple": 1}}, 0)
    env = AlfworldEnv(max_steps=4, cache_dir=str(folder / "cache"))
    _, seen = env.reset(game)
    actions, texts = [], [seen.text]
    for number in range(3):
        actions.append(sorted(seen.admissible_commands)[number])
        seen = env.step(actions[-1])
        texts.append(seen.text)
    yield env, game, actions, texts, seen
    env.close()


def test_the_same_observations_pass_with_and_without_the_last(played):
    env, game, actions, texts, last = played
    assert replay(env, game, actions, texts) == last
    assert replay(env, game, actions, texts[:-1]) == last


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_first_observation_that_differs_is_named_with_both_texts(played, number):
    env, game, actions, texts, _ = played
    changed = list(texts)
    for later in range(number, len(texts)):
        changed[later] = f"{changed[later][:5]}#{changed[later][5:]}"
    where = f"step {number}" if number else "reset"
    with pytest.raises(EnvError) as raised:
        replay(env, game, actions, changed)
    message = str(raised.value)
    assert message.startswith(f"{game.id}, {where}: the replay differs at character 5")
    assert repr(changed[number][5:125]) in message and repr(texts[number][5:125]) in message


def test_an_episode_that_ends_too_early_differs(played):
    env, game, actions, texts, _ = played
    with pytest.raises(EnvError, match=r"step 5: the replay differs: the episode was over after 4"):
        replay(env, game, [*actions, "look", "look"], [*texts, env.step("look").text])


def test_counts_that_do_not_fit_are_refused(played):
    env, game, actions, _, _ = played
    with pytest.raises(UsageError, match="3 actions have 1 observations"):
        replay(env, game, actions, ["x"])
