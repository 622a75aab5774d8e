"""A stage of AutoCoA that learns from what it plays: simulated searches first, then real ones.

One loop of reinforcement learning has both (`rl.simulated_steps`), so the optimizer, the questions
and the policy that the KL term compares with go on where the results change. A checkpoint is saved
there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.envs.base import Game, games_hash
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.rl.main import reinforce
from cotjax.rl.run import RLRun, policy_of
from cotjax.runtime.progress import Listener
from cotjax.study.games import GameSets
from cotjax.study.reinforcing import actors_of, kinds_of, played_model, rollout_elicitation
from cotjax.study.stages import StagePlan, config_of


def games_played(config: ConfigDict, games: GameSets) -> dict[str, Any]:
    """Return `data` of such a stage's `made_from`: the games that it plays."""
    return {"file": config.games.root or "games", "sha256": games_hash(_training(config, games))}


def rl_run(
    config: ConfigDict,
    plan: StagePlan,
    model: ModelConfig,
    codec: Codec,
    make_params: Callable[[Mesh], Params],
    made_from: Mapping[str, Any],
) -> RLRun:
    """Return what the training of a stage that plays is made of."""
    assert plan.rl is not None, f"{plan.name} learns from texts"
    own = config_of(config, plan)
    elicitation = rollout_elicitation(own, codec.template).recorded(kinds_of(own))
    return RLRun(
        plan.train,
        dropping=plan.dropping,
        model=played_model(model, plan.rl),
        make_params=make_params,
        seed=config.seed,
        made_from=made_from,
        config=json.loads(config.to_json_best_effort()),
        objective=policy_of(plan.rl),
        rl=plan.rl,
        playing=elicitation | {"max_length": own.evaluate.max_length},
    )


def reinforce_stage(
    config: ConfigDict,
    plan: StagePlan,
    run: RLRun,
    folder: Path,
    games: GameSets,
    codec: Codec,
    listener: Listener,
) -> None:
    """Train a stage by what it plays, or go on with it. Raises as `reinforce` does.

    `folder`: the stage's. `games`: of the run; its training games are played.
    """
    own = config_of(config, plan)
    with ExitStack() as stack:
        elicitation = rollout_elicitation(own, codec.template)
        reinforce(
            run,
            folder=folder,
            games=_training(config, games),
            actors=actors_of(own, run.model, codec, elicitation, stack),
            mesh_shape=dict(config.mesh),
            listener=listener,
        )


def _training(config: ConfigDict, games: GameSets) -> tuple[Game, ...]:
    """Return the training games of in-domain types, which alone are trained on."""
    return tuple(game for game in games.train if game.task_type in config.task_types.in_domain)
