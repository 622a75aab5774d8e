"""Trains arms by reinforcement learning, for `cotjax rl` and in a study, and plays checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cotjax.config import sampler_mesh
from cotjax.data.codec import Codec
from cotjax.data.trajectories import Trajectory
from cotjax.diagnostics.episodes import EpisodeCounts, count_records
from cotjax.envs.base import games_hash
from cotjax.envs.worlds import load_world
from cotjax.formats import TurnTemplate
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh
from cotjax.rl.devices import divided
from cotjax.rl.main import reinforce
from cotjax.rl.play import Actors
from cotjax.rl.rewards import AUTOCOA
from cotjax.rl.run import RLRun, policy_of
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.record import Kind
from cotjax.runtime import distributed
from cotjax.runtime.members import arm_and_seed
from cotjax.runtime.progress import Reporter, TrainingProgress
from cotjax.study.arms import arms_of, dropping_of
from cotjax.study.base import Start, base_folder, beginning, keep_model, make_start
from cotjax.study.dataset import base_content
from cotjax.study.evaluate import elicitation_of, environments_of, evaluate
from cotjax.study.export import keep_base
from cotjax.study.games import GameSets
from cotjax.study.jobs import BASE_ARM
from cotjax.study.memory import playing_memory
from cotjax.study.players import LocalPlayer, playing_mesh, sampler_of
from cotjax.study.starts import Place, in_order, start_of, train_of
from cotjax.study.training_data import load_codec
from cotjax.train.fingerprints import Fingerprints

_DRIVERS = ("cot", "prompt")  # whose success is logged while an arm is trained


def reinforce_arms(
    config: ConfigDict,
    folder: Path,
    games: GameSets,
    expert: Mapping[str, Trajectory],
    reporter: Reporter,
) -> None:
    """Train every arm by what it plays, and play each checkpoint on the same games.

    Args:
      folder: the run's.
      games: those to train on, and the panel that checkpoints are played on.
      expert: the expert's trajectories of the panel's games.
    """
    with distributed.in_turn("start"):
        start = make_start(config, folder, (), reporter)
        codec = load_codec(config, start.tokenizer)
        if distributed.first():
            keep_model(folder, start)
            keep_base(folder, base_folder(config), start.tokenizer, codec)
    reporter.say(playing_memory(config, start.model))
    panel = _Panel(config, folder, games, start.model, codec, expert, reporter)
    with Reinforcing(config, folder, games, start, codec, reporter) as reinforcing:
        for arm in in_order(config):
            reinforcing.train(arm, partial(panel.play, arm) if games.played else None)


class Reinforcing:
    """Trains arms of one model by what they play, each when it is asked to.

    The sampler and its environments are made for the first arm, and closed with the block.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        games: GameSets,
        start: Start,
        codec: Codec,
        reporter: Reporter,
    ):
        """`folder`: the run's. The other arguments are those of `reinforce_arms`."""
        self._config, self._folder, self._start = config, folder, start
        self._model = played_model(start.model, config.rl)
        self._codec, self._reporter = codec, reporter
        # Out-of-domain task types may be collected, but no arm trains on them.
        types = config.task_types.in_domain
        self._games = tuple(game for game in games.train if game.task_type in types)
        self._elicitation = rollout_elicitation(config, codec.template)
        self._stack = ExitStack()

    def __enter__(self) -> Reinforcing:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def train(self, arm: str, evaluate: Callable[[int], Mapping[str, Any]] | None = None) -> None:
        """Train an arm, or go on with it. `evaluate` is that of `reinforce`.

        Raises as `reinforce` does, and UsageError where no game can be played.
        """
        config, about = self._config, arms_of(self._config)[arm]
        where = f"{jax.device_count()} {jax.default_backend()} device(s)"
        title = f"Training {arm!r} ({about.label}) by reinforcement learning on {where}"
        rl, actors = _settings(config, arm), self._actors
        begins = beginning(config, self._folder, arm, self._start)
        with self._reporter.stage("train", title) as stage:
            reinforce(
                RLRun(
                    train_of(config, arm),
                    dropping=dropping_of(config, arm),
                    model=self._model,
                    make_params=begins.make_params,
                    seed=about.seed,
                    made_from=self._made_from | begins.made_from,
                    config=json.loads(config.to_json_best_effort()),
                    objective=policy_of(rl),
                    rl=rl,
                    playing=self._elicitation.recorded(actors.kinds)
                    | {"max_length": config.evaluate.max_length},
                ),
                folder=self._folder / "arms" / arm,
                games=self._games,
                actors=actors,
                mesh_shape=dict(config.mesh),
                listener=TrainingProgress(self._reporter, stage, step_in_words),
                evaluate=evaluate,
            )

    @cached_property
    def _actors(self) -> Actors:
        return actors_of(self._config, self._model, self._codec, self._elicitation, self._stack)

    @cached_property
    def _made_from(self) -> dict[str, dict[str, Any]]:
        """Fingerprints of the games, the tokenizer and the base (`cotjax.runtime.content`)."""
        fingerprints = Fingerprints(self._folder / "fingerprints.json")
        tokenizer = self._start.tokenizer / "tokenizer.json"
        made_from = {
            "data": {
                "file": self._config.games.root or "games",
                "sha256": games_hash(self._games),
            },
            "tokenizer": {"file": str(tokenizer), "sha256": fingerprints.of(tokenizer)},
            "base": base_content(self._config, fingerprints),
        }
        if distributed.first():
            fingerprints.keep()
        return made_from


def rollout_elicitation(config: ConfigDict, template: TurnTemplate) -> Elicitation:
    """Return how actions are drawn in training: CoT actions at random, prompt ones greedily.

    The temperature is 1, for that of `rl` is in the model that is played (`played_model`). Limits
    and prefixes are those of an evaluation.
    """
    return replace(
        elicitation_of(config, template),
        temperature=1.0,
        top_k=config.rl.top_k,
        top_p=config.rl.top_p,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        greedy=("prompt",),
        to_end=config.rl.sample_end,
    )


def played_model(model: ModelConfig, rl: ConfigDict) -> ModelConfig:
    """Return the model whose policy at temperature 1 is the one that is trained.

    What plays, what is trained and what it is compared with share it, so all log-probabilities are
    of one policy.
    """
    return replace(model, temperature=rl.temperature)


def _settings(config: ConfigDict, arm: str) -> ConfigDict:
    """Return `config.rl` with the arm's own advantage, and what its objective compares."""
    settings, own = config.rl.copy_and_resolve_references(), config.arms[arm_and_seed(arm)[0]]
    settings.advantage = own.get("advantage") or settings.advantage
    if own.get("objective") == "gigpo":
        settings.omega = settings.omega or 1.0
    return settings


def actors_of(
    config: ConfigDict, model: ModelConfig, codec: Codec, elicitation: Elicitation, stack: ExitStack
) -> Actors:
    """Return what plays in training; its environments are closed with the stack."""
    halves = 2 if config.evaluate.halves and config.rl.slots > 1 else 1
    slots = -(-config.rl.slots // (halves * distributed.count()))
    simulated = config.rl.simulated_steps > 0
    mesh = playing_mesh(config)
    if config.rl.play_devices:
        mesh = make_mesh(**sampler_mesh(config), devices=divided(config.rl.play_devices)[1])
    sampler = sampler_of(config.evaluate, model, codec, mesh, slots, simulated=simulated)
    pools = [stack.enter_context(environments_of(config, sampler.slots)) for _ in range(halves)]
    score = load_world(config.world).published_reward if config.rl.reward == AUTOCOA else None
    return Actors(sampler, pools, codec, elicitation, kinds_of(config), score)


def kinds_of(config: ConfigDict) -> tuple[Kind, ...]:
    """Return the kinds of action that are decoded in training."""
    return ("cot", "prompt") if config.rl.live_prompt else ("cot",)


def step_in_words(row: Mapping[str, Any]) -> str:
    """Return what a step's row says, for a line of progress."""
    reward = "none" if row["reward"] is None else f"{row['reward']['mean']:.3f}"
    success = "none" if row["success"] is None else f"{row['success']:.2f}"
    return f"reward {reward}, success {success}"


class _Panel:
    """Plays checkpoints on the games of the config: the same ones, greedily, at every checkpoint.

    Their records are those of an evaluation, so the report and the viewer need nothing else.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        games: GameSets,
        model: ModelConfig,
        codec: Codec,
        expert: Mapping[str, Trajectory],
        reporter: Reporter,
    ):
        self._config, self._folder, self._games, self._expert = config, folder, games, expert
        self._model, self._codec, self._reporter = model, codec, reporter
        self._warned: set[str] = set()

    def play(self, arm: str, step: int) -> dict[str, Any]:
        """Play an arm's checkpoints that have no records; return this one's success by domain.

        {} where `evaluate.episodes_at` leaves its episodes out.
        """
        start = start_of(self._config, arm)
        # The base is checkpoint 0 of the first arm that is played.
        arms = [arm] if start is None else [in_order(self._config)[0], arm]
        evaluate(
            self._config,
            player=self._player_of,
            games=self._games,
            expert=self._expert,
            arms={each: self._folder / "arms" / each / "checkpoints" for each in arms},
            records=self._folder / "records",
            warn=self._warn,
        )
        if "_player" in self.__dict__:
            self._player.unload()
        distributed.barrier("panel played")
        played = Place(arm, step) if step else start or Place(BASE_ARM, 0)
        found = distributed.from_first("panel", lambda: self._found(played))
        if found:
            self._reporter.say(f"  step {step}: {_success_in_words(found)}")
        return found

    def _found(self, played: Place) -> dict[str, Any]:
        """Return a checkpoint's success by domain, from its records."""
        records = self._folder / "records" / played.member / str(played.step)
        episodes = [
            each
            for each in (count_records(records) if records.is_dir() else ())
            if each.driver in _DRIVERS and each.ended != "env_error"
        ]
        return {
            domain: success_of([each for each in episodes if each.domain == domain])
            for domain in sorted({each.domain for each in episodes})
        }

    @cached_property
    def _player(self) -> LocalPlayer:
        return LocalPlayer(self._config, self._model, self._codec, self._slots)

    def _player_of(self, slots: int) -> LocalPlayer:
        """Return the same player each time: its programs are compiled once."""
        self._slots = slots
        return self._player

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._reporter.say(text)


def success_of(episodes: Sequence[EpisodeCounts]) -> dict[str, float | int]:
    """Return the share of games won by each driver, the gap, and the number of games."""
    won = {
        driver: [each.success for each in episodes if each.driver == driver] for driver in _DRIVERS
    }
    rates: dict[str, float | int] = {
        driver: sum(own) / len(own) for driver, own in won.items() if own
    }
    if len(rates) == len(won):
        rates["gap"] = rates["cot"] - rates["prompt"]
    return rates | {"games": len({each.game for each in episodes})}


def _success_in_words(found: Mapping[str, Mapping[str, float | int]]) -> str:
    return "; ".join(
        f"{domain}: "
        + ", ".join(f"{rates[kind]:.2f} by {kind}" for kind in _DRIVERS if kind in rates)
        for domain, rates in found.items()
    )
