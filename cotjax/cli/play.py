"""`cotjax play`. Heavy imports happen in the command, as in `cotjax.cli.main`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cotjax.errors import UsageError


def add_play(play: argparse.ArgumentParser) -> None:
    """Add the arguments of `play`."""
    play.description = (
        "Play a game in the terminal. With --run or --model, watch a checkpoint play it: "
        "thoughts, both actions, answers."
    )
    play.add_argument(
        "--world", help="world that is played, as config.world (default: the run's, else alfworld)"
    )
    play.add_argument(
        "--game", type=Path, help="the game's file or folder (ALFWorld: game.tw-pddl)"
    )
    play.add_argument("--games", type=Path, help="folder of games, instead of --game")
    play.add_argument("--split", default="valid_seen", help="split of --games (default valid_seen)")
    play.add_argument(
        "--index",
        type=int,
        default=0,
        help="which game of the split, in the order of ids (default 0)",
    )
    play.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        help="watch a checkpoint of this run's folder, e.g. runs/demo",
    )
    play.add_argument("--arm", default="sft", help="arm of the run (default sft)")
    play.add_argument(
        "--step", type=int, help="checkpoint of the arm (default: the last; 0 is the base)"
    )
    play.add_argument(
        "--model",
        type=Path,
        help="watch the model in this folder, instead of --run; "
        "--config.prompt.instruction=world tells it the response format",
    )
    play.add_argument(
        "--template",
        default="chatml",
        help="turn template of --model, or auto (default chatml)",
    )
    play.add_argument(
        "--driver",
        choices=("cot", "prompt"),
        default="cot",
        help="whose action is played (default cot)",
    )
    play.add_argument(
        "--max-steps", type=int, help="steps an episode (default: the run's, else 30)"
    )
    play.add_argument("--seed", type=int, default=0, help="of sampled decoding (default 0)")
    play.add_argument("--pause", action="store_true", help="wait for Enter after each step")
    play.add_argument(
        "--delay", type=float, default=0.0, help="seconds to wait after each step (default 0)"
    )
    play.set_defaults(run=_play)


def _play(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from cotjax.config import set_field
    from cotjax.envs.worlds import load_world
    from cotjax.study import play

    if arguments.run_folder and arguments.model:
        raise UsageError("give --run or --model, not both")
    if arguments.overrides and not arguments.model:
        raise UsageError(
            f"--config.{arguments.overrides[0]}: a run plays as it was trained; only --model takes "
            "--config.prompt.… and --config.evaluate.…"
        )
    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise UsageError(f"--max-steps is {arguments.max_steps}; it must be at least 1")
    world = load_world(arguments.world or _usual_world(arguments))
    game = play.choose_game(
        world, arguments.game, arguments.games, arguments.split, arguments.index
    )
    console = Console(highlight=False)
    if not arguments.run_folder and not arguments.model:
        play.play_by_hand(world, game, console, sys.stdin, arguments.max_steps or 30)
        return
    after_step = play.pauses(arguments.pause, arguments.delay)
    if arguments.run_folder:
        player = play.player_of_run(arguments.run_folder, arguments.arm, arguments.step)
    else:
        player = play.player_of_model(arguments.model, arguments.template)
        for override in arguments.overrides:
            if not override.startswith(("prompt.", "evaluate.", "data.layout=")):
                raise UsageError(
                    f"--config.{override}: --model takes --config.prompt.…, "
                    "--config.evaluate.… and --config.data.layout; the world is --world"
                )
            set_field(player.config, override)
        if player.config.prompt.examples:
            raise UsageError(
                "prompt.examples are of a run's trajectories; give --run, or 0 of them"
            )
    play.watch(
        world,
        game,
        player,
        console,
        driver=arguments.driver,
        max_steps=arguments.max_steps,
        seed=arguments.seed,
        after_step=after_step,
    )


def _usual_world(arguments: argparse.Namespace) -> str:
    from cotjax.study.play import world_of_run

    return world_of_run(arguments.run_folder) if arguments.run_folder else "alfworld"
