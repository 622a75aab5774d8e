"""Plays every checkpoint: episodes by CoT actions, episodes by prompt actions, and both actions on held-out expert states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.data.tokens import Codec
from cotjax.data.trajectories import Trajectory
from cotjax.envs.alfworld import AlfworldEnv
from cotjax.envs.base import Game
from cotjax.envs.pool import EnvPool
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh
from cotjax.rollout.loop import Elicitation, play
from cotjax.rollout.record import record_path, write_record
from cotjax.rollout.replay import ReplayEnvironments
from cotjax.sample.sampler import Sampler
from cotjax.study.games import GameSets
from cotjax.train.checkpoint import Checkpoints

BASE_ARM = "base"


def elicitation_of(config: ConfigDict) -> Elicitation:
    """How actions are elicited under this config: the same for every checkpoint."""
    settings = config.evaluate
    for name in ("slots", "max_length", "max_steps", "max_new_tokens", "max_action_tokens"):
        if settings[name] < 1:
            raise UsageError(f"evaluate.{name} is {settings[name]}; it must be at least 1")
    return Elicitation(
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        max_action_tokens=settings.max_action_tokens,
        max_steps=settings.max_steps,
        cot_prefix=settings.cot_prefix,
    )


def evaluate(
    config: ConfigDict,
    *,
    model: ModelConfig,
    codec: Codec,
    games: GameSets,
    expert: Mapping[str, Trajectory],
    arms: Mapping[str, Path],
    records: Path,
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> None:
    """Play what has no record yet; run again, it goes on.

    Args:
      expert: game id -> the expert's trajectory on a played game; its states are those of the offline diagnostics.
      arms: arm -> its folder of checkpoints. Checkpoint 0, the base, is the same in every arm and is played once.
      records: folder for the records.
    """
    elicitation = elicitation_of(config)
    mesh = make_mesh(**config.mesh)
    plan = _plan(arms)
    drivers = {"cot": list(games.played), "prompt": list(games.played), "reference": [game for game in games.played if game.id in expert]}
    total = len(plan) * sum(len(played) for played in drivers.values())
    done = 0
    sampler = None
    slots = min(config.evaluate.slots, max(1, len(games.played)))
    slots = -(-slots // mesh.size) * mesh.size
    references = {game_id: [step.action for step in trajectory.steps] for game_id, trajectory in expert.items()}
    factory = partial(AlfworldEnv, max_steps=elicitation.max_steps)
    with EnvPool(factory, slots, config.workers, timeout=config.evaluate.step_timeout) as pool:
        for arm, step, checkpoints in plan:
            path_of = partial(record_path, records, arm=arm, checkpoint=step)
            loaded = False
            for driver, played in drivers.items():
                todo = [game for game in played if not path_of(driver=driver, game_id=game.id).exists()]
                done += len(played) - len(todo)
                if not todo:
                    continue
                if sampler is None:
                    sampler = Sampler(
                        model, mesh, slots=slots, max_length=config.evaluate.max_length, stop=codec.stop, pad_id=codec.pad_id
                    )
                if not loaded:
                    sampler.load(checkpoints.restore_params(step, model, mesh))
                    loaded = True

                def keep(game: Game, record: dict, driver: str = driver, path_of=path_of, arm: str = arm, step: int = step) -> None:
                    nonlocal done
                    facts = {"arm": arm, "checkpoint": step, "domain": games.domain_of(game), "games_hash": games.hash}
                    write_record(path_of(driver=driver, game_id=game.id), facts | record)
                    done += 1
                    report(done, total, f"episodes, {arm} at step {step}, {driver}")

                play(
                    todo,
                    policy=sampler,
                    codec=codec,
                    environments=ReplayEnvironments(expert) if driver == "reference" else pool,
                    driver=driver,
                    elicitation=elicitation,
                    seed=config.seed,
                    on_record=keep,
                    references=references,
                )


def _plan(arms: Mapping[str, Path]) -> list[tuple[str, int, Checkpoints]]:
    """(arm, step, checkpoints) in the order of play: the base once, then each arm's own."""
    plan: list[tuple[str, int, Checkpoints]] = []
    for arm, folder in arms.items():
        checkpoints = Checkpoints(folder)
        steps = checkpoints.steps()
        if not steps:
            raise UsageError(f"{folder}: no checkpoint to evaluate; run `cotjax train` first")
        if not plan:
            plan.append((BASE_ARM, 0, checkpoints))
        plan.extend((arm, step, checkpoints) for step in steps if step > 0)
    return plan
