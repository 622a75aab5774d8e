"""run.json: what the report says about a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from cotjax.data.trajectories import Trajectory
from cotjax.envs.base import Game
from cotjax.envs.worlds import World, load_world
from cotjax.formats import TurnTemplate, state_key
from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params
from cotjax.rollout import contracts
from cotjax.runtime.claim import content_of_arm, planned_steps, plays
from cotjax.runtime.files import read_json, write_atomic
from cotjax.runtime.members import arm_and_seed
from cotjax.runtime.provenance import git_revision, package_versions
from cotjax.study.arms import Arm, arms_of
from cotjax.study.games import GameSets, task_types_of


class DescribedCodec(contracts.Codec, Protocol):
    """A codec with a turn template."""

    @property
    def template(self) -> TurnTemplate: ...


def describe_run(
    config: ConfigDict,
    run: Path,
    games: GameSets,
    model: ModelConfig | Mapping[str, Any],
    codec: DescribedCodec,
    expert: Mapping[str, Trajectory],
    seconds: Mapping[str, float],
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write run.json of a study with this config, in its folder.

    Args:
      games: the games that were played.
      model: the model that was trained, or played; or what is known of it.
      codec: encodes its prompts.
      expert: the expert's trajectory of each of these games.
      seconds: time that each stage took now.
      made_from: what is played, where no arm is trained.
    """
    world = load_world(config.world)
    arms = {name: run / "arms" / name for name in arms_of(config)}
    resolved = {name: _resolved(config, arm, arms[name]) for name, arm in arms_of(config).items()}
    on_data = any(not arm.reinforced for arm in resolved.values())
    counts = read_json(run / "data.json", "cotjax train") if on_data else {}
    about = {
        "name": run.name,
        "title": config.title,
        "world": world.name,
        "expert": "expert" in world.agents,
        "arms": {
            name: dict(config.arms[arm_and_seed(name)[0]]) | asdict(arm)
            for name, arm in resolved.items()
        },
        "checkpoints": sorted({0, *chain.from_iterable(map(planned_steps, arms.values()))}),
        "model": _model(model, config) if isinstance(model, ModelConfig) else dict(model),
        "games": _games(config, world, games),
        "data": {
            **(_trained_on(counts) if counts else {}),
            "held_out_trajectories": len(expert),
            "arms": {arm: _trained_on(own) for arm, own in counts.get("arms", {}).items()},
        },
        "prompt": _prompt(config, codec, expert.values()),
        "made_from": _made_from(arms) if arms else made_from,
        "train": dict(config.train) if arms else {},
        "masking": _listed(config.masking) if arms else {},
        "versions": package_versions(),
        "git": git_revision(),
        "devices": f"{jax.device_count()} {jax.default_backend()}",
        "seed": config.seed,
        "seconds": _longest(run / "run.json", seconds),
        "config": json.loads(config.to_json_best_effort()),
    }
    write_atomic(run / "run.json", json.dumps(about, indent=2) + "\n")


def _model(model: ModelConfig, config: ConfigDict) -> dict[str, Any]:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
    return {"parameters": parameters, "base": config.model.base}


def _resolved(config: ConfigDict, arm: Arm, folder: Path) -> Arm:
    """Return an arm of a run; what `cotjax rl` trained by its objective, whatever its config says.

    `folder`: the arm's.
    """
    if arm.reinforced or not plays(folder):
        return arm
    objective = "gigpo" if config.rl.omega else "grpo"
    return replace(
        arm, objective=objective, thoughts="", trajectories="", task_types=(), direct_share=None
    )


def _made_from(arms: Mapping[str, Path]) -> dict[str, Any]:
    """Return what the arms are made from; of a part that differs, what each arm has.

    `arms`: name -> folder.
    """
    contents = {name: content_of_arm(folder) or {} for name, folder in arms.items()}
    parts = dict.fromkeys(part for content in contents.values() for part in content)
    made_from = {}
    for part in parts:
        of_arms = {arm: each.get(part) for arm, each in contents.items()}
        first, *others = of_arms.values()
        made_from[part] = first if all(each == first for each in others) else of_arms
    return made_from


def _prompt(
    config: ConfigDict, codec: DescribedCodec, trajectories: Iterable[Trajectory]
) -> dict[str, Any]:
    """Return the settings of the prompts and the text of one, with a past turn if it can be."""
    ids: list[int] = []
    # The first of the longest, of which there may be none.
    for each in sorted(trajectories, key=lambda each: -len(each.steps))[:1]:
        for number, step in enumerate(each.steps[:2]):
            state = step.admissible_commands, state_key(each.game, number)
            if number:
                ids += codec.next_prompt(each.steps[0].action, step.observation, *state)
            else:
                ids += codec.first_prompt(each.task, step.observation, *state)
    settings = {**config.prompt, "template": codec.template.name}
    return {"settings": settings, "text": codec.decode(ids)}


def _games(config: ConfigDict, world: World, games: GameSets) -> dict[str, Any]:
    made = config.games.source == "made"
    return {
        "source": "made by cotjax" if made else world.title or world.name,
        "hash": games.hash,
        **{
            domain: _domain(config, world, domain, played)
            for domain, played in games.domains.items()
        },
    }


def _domain(
    config: ConfigDict, world: World, domain: str, games: tuple[Game, ...]
) -> dict[str, Any]:
    held_out = {"held_out": world.axes[domain]} if domain in world.axes else {}
    return {
        "games": len(games),
        "split": " and ".join(sorted({game.split for game in games})),
        "task_types": list(task_types_of(config, domain)),
        **held_out,
    }


def _listed(settings: ConfigDict) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }


def _trained_on(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trajectories": counts["trained_trajectories"],
        "steps": counts["trained_steps"],
        "examples": counts["examples"],
        "left_out": counts["left_out"],
        "thought_provenance": counts["thought_provenance"],
    }


def _longest(file: Path, seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the time of each stage, at least as long as an earlier run.json says.

    A resumed run finds stages done, which takes no time; that is not what they cost.
    """
    before = read_json(file, "cotjax").get("seconds", {}) if file.exists() else {}
    return {
        stage: round(max(before.get(stage, 0.0), seconds.get(stage, 0.0)), 1)
        for stage in {**before, **seconds}
    }
