"""What an evaluation checks before anything is trained, and what it warns of."""

from dataclasses import replace
from io import StringIO

import jax
import pytest
from helpers import tiny
from rich.console import Console

from cotjax.assets import BASE_FOLDER
from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.envs.alfworld import WORLD, find_games
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.base import Game
from cotjax.errors import DataError, UsageError
from cotjax.model.sharding import make_mesh
from cotjax.study import play
from cotjax.study.evaluate import check_playable, playing_of
from cotjax.study.games import GameSets
from cotjax.study.jobs import warn_of_unplayed
from cotjax.study.players import sampler_of
from cotjax.weights.convert import read_config


@pytest.fixture(scope="module")
def base():
    return read_config(BASE_FOLDER), Codec.load(BASE_FOLDER)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"max_length": 40_000}, UsageError, "evaluate.max_length"),
        (
            {"max_length": 96},
            UsageError,
            "evaluate.max_new_tokens is 96; it must be less than evaluate.max_length, 96",
        ),
        ({"max_action_tokens": 2048}, UsageError, "evaluate.max_action_tokens is 2048"),
        ({"cot_prefix": "dragons"}, DataError, "does not know 'dragons'"),
        ({"top_k": 2**31}, UsageError, "evaluate.top_k"),
        ({"no_repeat_ngram_size": 2**31}, UsageError, "evaluate.no_repeat_ngram_size"),
        ({"temperature": -1.0}, UsageError, "evaluate.temperature"),
    ],
    ids=str,
)
def test_settings_that_could_be_trained_but_not_played_are_refused(base, changes, error, words):
    config = default_config()
    check_playable(config, *base)
    config.evaluate.update(changes)
    with pytest.raises(error, match=words):
        check_playable(config, *base)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"elicitations": ()}, UsageError, "evaluate.elicitations is empty"),
        ({"offline": ("cot", "free")}, UsageError, "evaluate.offline: unknown kind 'free'; there"),
        ({"constrained_by": "sum"}, UsageError, "evaluate.constrained_by is 'sum'; it must be 'to"),
        ({"episodes_at": (0, 7)}, UsageError, "no checkpoint is saved at 7; there are 0, "),
        ({"elicitations": ("instructed",)}, DataError, r"evaluate\.instruction: .*does not know"),
    ],
    ids=str,
)
def test_kinds_of_action_are_checked_before_training(base, changes, error, words):
    config = default_config()
    config.evaluate.update(changes)
    with pytest.raises(error, match=words):
        check_playable(config, *base)


def test_a_world_that_lists_no_actions_allows_no_choice_among_them(monkeypatch):
    config = default_config()
    config.evaluate.elicitations = ("prompt_constrained", "cot")
    assert playing_of(config).played == ("cot", "prompt_constrained")
    monkeypatch.setattr(type(WORLD), "lists_commands", False)
    with pytest.raises(UsageError, match="leave 'prompt_constrained' out"):
        playing_of(config)


def test_kinds_that_drive_are_measured_too_and_each_once():
    config = default_config()
    config.evaluate.offline = ("instructed", "cot", "prompt_constrained")
    config.train.steps, config.train.save_every = 60, 20
    config.evaluate.episodes_at = (0, 60)
    playing = playing_of(config)
    assert playing.played == ("cot", "prompt") and playing.episodes_at == (0, 60)
    config.evaluate.episodes_at = (0, -1)
    assert playing_of(config).episodes_at == (0, config.train.steps)
    assert playing.measured == ("cot", "prompt", "prompt_constrained", "instructed")


def test_a_tokenizer_of_another_model_is_refused(base):
    model, codec = base
    with pytest.raises(UsageError, match=f"the tokenizer has ids up to {codec.vocab_size - 1}"):
        check_playable(default_config(), replace(model, vocab_size=codec.vocab_size - 1), codec)


def test_a_sampler_draws_the_codecs_tokens_and_holds_the_longest_response(base):
    model, codec = base
    settings = default_config().evaluate
    settings.max_new_tokens, settings.max_length = 200, 512
    sampler = sampler_of(settings, model, codec, make_mesh(devices=jax.devices()[:1]), 1)
    assert sampler.max_new == 200
    tokens_V = jax.device_get(sampler._runner._tokens)
    assert tokens_V[: codec.vocab_size].tolist() == codec.token_mask.tolist()
    assert not tokens_V[codec.vocab_size :].any()


def test_a_model_with_long_responses_is_watched(tmp_path):
    """A response longer than the sampler's default is decoded to its end."""
    make_games(tmp_path, {"valid_seen": {"pick_and_place_simple": 1}}, 0, 1)
    player = play.player_of_model(BASE_FOLDER, "chatml")
    player.config.evaluate.max_new_tokens, player.config.evaluate.max_length = 130, 512
    out = StringIO()
    (game,) = find_games(tmp_path, "valid_seen")
    play.watch(
        WORLD,
        game,
        player,
        Console(file=out),
        driver="cot",
        max_steps=1,
        seed=0,
        after_step=lambda: None,
    )
    assert "Step 1 of 1" in out.getvalue() and "after 1 step" in out.getvalue()


def test_games_without_an_experts_trajectory_are_named():
    games = tuple(Game(f"g{number}", "", "valid_unseen", "t") for number in range(5))
    said = []
    warn_of_unplayed(
        {}, {}, GameSets((), {"in_domain": games}), {"g1": tiny.trajectory()}, said.append
    )
    assert (
        len(said) == 1
        and said[0].startswith("4 of 5 games have no trajectory")
        and said[0].endswith("(D1, D2): g0, g2, g3, …")
    )
    warn_of_unplayed(
        {},
        {},
        GameSets((), {"in_domain": games}),
        {game.id: tiny.trajectory() for game in games},
        said.append,
    )
    assert len(said) == 1
