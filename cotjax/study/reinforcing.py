"""The stage that trains a study's arms by reinforcement learning, and plays their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.data.trajectories import Trajectory
from cotjax.diagnostics.episodes import EpisodeCounts, count_records
from cotjax.envs.base import games_hash
from cotjax.formats import TurnTemplate
from cotjax.model.config import ModelConfig
from cotjax.rl.main import reinforce
from cotjax.rl.play import Actors
from cotjax.rl.run import RLRun, policy_of
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.record import Kind
from cotjax.runtime.members import arm_and_seed
from cotjax.runtime.progress import Reporter, TrainingProgress
from cotjax.study.arms import arms_of, dropping_of
from cotjax.study.base import Start, base_folder, keep_model, make_start
from cotjax.study.evaluate import elicitation_of, environments_of, evaluate
from cotjax.study.export import keep_base
from cotjax.study.games import GameSets
from cotjax.study.jobs import BASE_ARM
from cotjax.study.memory import playing_memory
from cotjax.study.players import LocalPlayer, playing_mesh, sampler_of
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
    """Train every arm from the base, and play each checkpoint on the same games.

    Args:
      folder: the run's.
      games: those to train on, and the panel that checkpoints are played on.
      expert: the expert's trajectories of the panel's games.
    """
    start = make_start(config, folder, (), reporter)
    codec = load_codec(config, start.tokenizer)
    keep_model(folder, start)
    keep_base(folder, base_folder(config), start.tokenizer, codec)
    reporter.say(playing_memory(config, start.model))
    panel = _Panel(config, folder, games, start.model, codec, expert, reporter)
    elicitation = rollout_elicitation(config, codec.template)
    made_from = _made_from(config, folder, games, start)
    arms = arms_of(config)
    with ExitStack() as stack:
        actors = _actors(config, start.model, codec, elicitation, stack)
        for arm, about in arms.items():
            where = f"{jax.device_count()} {jax.default_backend()} device(s)"
            title = f"Training {arm!r} ({about.label}) by reinforcement learning on {where}"
            rl = _settings(config, arm)
            with reporter.stage("train", title) as stage:
                reinforce(
                    RLRun(
                        config.train,
                        dropping=dropping_of(config, arm),
                        model=start.model,
                        make_params=start.params_of(about.seed),
                        seed=about.seed,
                        made_from=made_from,
                        config=json.loads(config.to_json_best_effort()),
                        objective=policy_of(rl),
                        rl=rl,
                        playing=elicitation.recorded(actors.kinds)
                        | {"max_length": config.evaluate.max_length},
                    ),
                    folder=folder / "arms" / arm,
                    games=games.train,
                    actors=actors,
                    mesh_shape=dict(config.mesh),
                    listener=TrainingProgress(reporter, stage, _in_words),
                    evaluate=partial(panel.play, arm) if games.played else None,
                )


def rollout_elicitation(config: ConfigDict, template: TurnTemplate) -> Elicitation:
    """Return how actions are drawn in training: CoT actions at temperature 1, prompt ones greedily.

    Limits and prefixes are those of an evaluation.
    """
    return replace(
        elicitation_of(config, template),
        temperature=config.rl.temperature,
        top_k=config.rl.top_k,
        top_p=config.rl.top_p,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        greedy=("prompt",),
    )


def _settings(config: ConfigDict, arm: str) -> ConfigDict:
    """Return `config.rl` with the arm's own advantage."""
    settings = config.rl.copy_and_resolve_references()
    settings.advantage = config.arms[arm_and_seed(arm)[0]].get("advantage") or settings.advantage
    return settings


def _actors(
    config: ConfigDict, model: ModelConfig, codec: Codec, elicitation: Elicitation, stack: ExitStack
) -> Actors:
    """Return what plays in training; its environments are closed with the stack."""
    halves = 2 if config.evaluate.halves and config.rl.slots > 1 else 1
    slots = -(-config.rl.slots // halves)
    simulated = config.rl.simulated_steps > 0
    mesh = playing_mesh(config)
    sampler = sampler_of(config.evaluate, model, codec, mesh, slots, simulated=simulated)
    pools = [stack.enter_context(environments_of(config, sampler.slots)) for _ in range(halves)]
    kinds: tuple[Kind, ...] = ("cot", "prompt") if config.rl.live_prompt else ("cot",)
    return Actors(sampler, pools, codec, elicitation, kinds)


def _made_from(
    config: ConfigDict, folder: Path, games: GameSets, start: Start
) -> dict[str, dict[str, Any]]:
    """Return fingerprints of the games, the tokenizer and the base (`cotjax.runtime.content`)."""
    fingerprints = Fingerprints(folder / "fingerprints.json")
    base, tokenizer = base_folder(config), start.tokenizer / "tokenizer.json"
    assert base is not None, "a policy starts from a folder"
    made_from = {
        "data": {"file": config.games.root or "games", "sha256": games_hash(games.train)},
        "tokenizer": {"file": str(tokenizer), "sha256": fingerprints.of(tokenizer)},
        "base": {"file": str(base), "sha256": fingerprints.of_base(base)},
    }
    fingerprints.keep()
    return made_from


def _in_words(row: Mapping[str, Any]) -> str:
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
        evaluate(
            self._config,
            player=self._player_of,
            games=self._games,
            expert=self._expert,
            arms={arm: self._folder / "arms" / arm / "checkpoints"},
            records=self._folder / "records",
            warn=self._warn,
        )
        if "_player" in self.__dict__:
            self._player.unload()
        records = self._folder / "records" / (arm if step else BASE_ARM) / str(step)
        episodes = [
            each
            for each in (count_records(records) if records.is_dir() else ())
            if each.driver in _DRIVERS and each.ended != "env_error"
        ]
        found = {
            domain: success_of([each for each in episodes if each.domain == domain])
            for domain in sorted({each.domain for each in episodes})
        }
        if found:
            self._reporter.say(f"  step {step}: {_success_in_words(found)}")
        return found

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
