"""Made games with the expert's episodes, and records in which both actions are planted."""

from pathlib import Path

from cotjax.config import default_config
from cotjax.data.trajectories import Trajectory, read_trajectories
from cotjax.envs.base import Game
from cotjax.envs.worlds import World
from cotjax.probes.probe import Checkpoint
from cotjax.rollout.collect import Collecting, collect
from cotjax.rollout.record import (
    Driver,
    PlayedGame,
    Record,
    Timing,
    Turn,
    record_path,
    write_record,
)
from helpers.studies import ELICITATION, response

ARM, STEP = "sft", 60


def experts(world: World, games: list[Game], folder: Path) -> list[Trajectory]:
    """Return the expert's won episodes of games."""
    collect(world, games, folder / "played.jsonl", Collecting("expert", seed=0, max_steps=60))
    return list(read_trajectories(folder / "played.jsonl"))


def episode_of(world: World, game: Game, executed: list[str]) -> tuple:
    """Return (task, steps, last observation) of these actions; "" is an invalid response."""
    env = world.make_env(len(executed) + 1)()
    task, seen = env.reset(game)
    steps = []
    for action in executed:
        steps.append({"observation": seen.text, "action": action, "accepted": seen.accepted})
        seen = env.step(action)
        steps[-1]["accepted"] = seen.accepted
    env.close()
    return task, steps, seen


def write_record_of(
    run: Path,
    world: World,
    game: Game,
    pairs: list[tuple[str | None, str | None]],
    *,
    driver: Driver,
    executed: list[str],
    domain: str = "in_domain",
    sample: int = 0,
    changed: dict[int, str] | None = None,
) -> Path:
    """Write the record of an episode of these actions; return its path.

    `pairs`: (CoT action, prompt action) of each turn; None: an invalid response. `changed`: number
    of a turn -> its observation in place of the true one.
    """
    task, steps, last = episode_of(world, game, executed)
    turns = []
    for number, (step, (cot, prompt)) in enumerate(zip(steps, pairs, strict=True)):
        turns.append(
            Turn(
                observation=(changed or {}).get(number, step["observation"]),
                admissible_commands=None,
                prompt_ids=(1, 2),
                prompt_length=2 * number + 2,
                cot=response(cot, "I think.", 20),
                prompt=response(prompt, None, 4),
                reference=step["action"] if driver == "reference" else None,
                executed=step["action"],
                accepted=step["accepted"],
                score=None,
            )
        )
    path = record_path(
        run / "records",
        arm=ARM,
        checkpoint=STEP,
        driver=driver,
        game_id=game.id,
        sample=sample,
    )
    record = Record(
        world=world.name,
        arm=ARM,
        checkpoint=STEP,
        checkpoint_hash="sha",
        games_hash="games",
        domain=domain,
        driver=driver,
        game=PlayedGame(id=game.id, task_type=game.task_type, split=game.split),
        seed=0,
        sample=sample,
        task=task,
        success=last.won,
        score=None,
        ended="won" if last.won else "step_limit",
        env_error=None,
        env_faults=(),
        elicitation=ELICITATION,
        steps=tuple(turns),
        final_observation=last.text,
        timing=Timing(environment_s=0.5, waited_s=0.25, sampler_s=1.5, total_s=2.0),
    )
    write_record(path, record)
    return path


def checkpoint_of(run: Path, world: World, games: list[Game], **others) -> Checkpoint:
    """Return the checkpoint whose records are in a run."""
    config = default_config()
    config.world = world.name
    fields = {
        "arm": ARM,
        "step": STEP,
        "digest": "sha",
        "config": config,
        "world": world,
        "games": {game.id: game for game in games},
        "codec": None,
        "files": sorted((run / "records" / ARM / str(STEP)).glob("*/*.json")),
        "load_policy": None,
        "load_weights": None,
        "workers": 0,
        "say": print,
    }
    return Checkpoint(**fields | others)
