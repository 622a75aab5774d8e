"""`cotjax play`: a person plays a game in the terminal, or watches a checkpoint play it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from cotjax.config import default_config
from cotjax.envs.alfworld.env import AlfworldEnv, find_games, game_at
from cotjax.envs.base import Game, Observation
from cotjax.errors import DataError, UsageError
from cotjax.rollout.record import Driver, Episode, Turn
from cotjax.runtime.terminal import visible

_HELP = "type a command, ? for those that work here, a number to take one of them, quit to leave"


def choose_game(game: Path | None, games: Path | None, split: str, index: int) -> Game:
    """The game of `--game PATH`, or number `index` of `--games FOLDER --split S`. Raises UsageError where there is none."""
    if (game is None) == (games is None):
        raise UsageError(
            "give the game to play: --game PATH, or --games FOLDER with --split and --index"
        )
    if game is not None:
        return game_at(game)
    found = find_games(games, split)
    if not 0 <= index < len(found):
        raise UsageError(
            f"--index {index}: {games} has games 0 to {len(found) - 1} in split {split!r}"
        )
    return found[index]


def play_by_hand(
    game: Game, console: Console, lines: TextIO = sys.stdin, max_steps: int = 30
) -> bool:
    """A person plays; returns whether the game was won. The end of `lines` is taken for quit."""
    env = AlfworldEnv(max_steps)
    task, seen = env.reset(game)
    _say(console, f"Your task is to: {task}.", "bold")
    _say(console, seen.text)
    _say(console, _HELP, "dim")
    steps = 0
    while not seen.done:
        console.print("> ", end="")
        line = lines.readline()
        if not lines.isatty():
            _say(console, line.strip() if line else "quit")
        command = _meant(line.strip(), seen, console) if line else "quit"
        if command == "quit":
            break
        if command is None:
            continue
        seen = env.step(command)
        steps += 1
        _say(console, seen.text)
        _say(console, f"[step {steps} of {max_steps}, score {int(seen.won)} of 1]", "dim")
    _say(console, _verdict(seen.won, steps), "bold green" if seen.won else "bold")
    return seen.won


def _meant(line: str, seen: Observation, console: Console) -> str | None:
    """The command that a line stands for; None where it was a question, which is answered here."""
    commands = seen.admissible_commands
    if line == "?":
        for number, command in enumerate(commands, start=1):
            _say(console, f"{number:4} {command}")
    elif line in ("", "help"):
        _say(console, _HELP, "dim")
    elif line.isdecimal() and not 1 <= int(line) <= len(commands):
        _say(console, f"there are commands 1 to {len(commands)} here: ? shows them", "dim")
    elif line.isdecimal():
        _say(console, commands[int(line) - 1])
        return commands[int(line) - 1]
    else:
        return line
    return None


@dataclass(frozen=True)
class Player:
    """A checkpoint that plays. `params`: restores its weights onto a mesh; `settings`: a config's `evaluate` section."""

    name: str
    model: object
    params: Callable
    tokenizer: Path
    template: str
    system: str
    config: object


def player_of_run(run: Path, arm: str, step: int | None) -> Player:
    """A run's checkpoint, with the elicitation of the run. Raises UsageError where there is no such checkpoint."""
    from cotjax.study.export import find_checkpoint

    model, checkpoints, step = find_checkpoint(run, arm, step)
    config = default_config()
    try:
        saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
        config.evaluate.update(
            {name: value for name, value in saved["evaluate"].items() if name in config.evaluate}
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{run / 'config.json'}: not a run's config ({error}); give --model with an exported checkpoint"
        ) from None
    restore = partial(checkpoints.restore_params, step, model)
    data = saved["data"]
    return Player(
        f"{arm}, step {step}",
        model,
        restore,
        run / "tokenizer",
        data["template"],
        data.get("system", ""),
        config,
    )


def player_of_model(folder: Path, template: str) -> Player:
    """A model's folder, Hugging Face, Orbax or PEFT. Raises UsageError where it is none."""
    from cotjax.weights.convert import load_params, read_config, tokenizer_folder

    return Player(
        str(folder),
        read_config(folder),
        partial(load_params, folder),
        tokenizer_folder(folder),
        template,
        "",
        default_config(),
    )


def watch(
    game: Game,
    player: Player,
    console: Console,
    *,
    driver: Driver,
    max_steps: int | None,
    seed: int,
    after_step: Callable[[], None],
) -> bool:
    """A checkpoint plays; returns whether it won. `driver`: "cot" or "prompt", whose action is played; both are shown."""
    from cotjax.data.codec import Codec
    from cotjax.envs.pool.pool import EnvPool
    from cotjax.model.sharding import make_mesh
    from cotjax.rollout.loop import play
    from cotjax.study.evaluate import elicitation_of, sampler_of

    settings = player.config.evaluate
    settings.max_steps = max_steps or settings.max_steps
    codec, mesh = Codec.load(player.tokenizer, player.template, player.system), make_mesh()
    settings.max_length = min(settings.max_length, player.model.max_length)
    sampler = sampler_of(settings, player.model, codec, mesh, slots=1)
    sampler.load(player.params(mesh))
    _say(
        console,
        f"{player.name} plays {game.id} by {'CoT' if driver == 'cot' else 'prompt'} actions",
        "bold",
    )
    shown: list[Turn] = []
    records: list[Episode] = []

    def on_step(turn: Turn, answer: Observation | None) -> None:
        shown.append(turn)
        _show_step(console, turn, len(shown), settings.max_steps, driver, answer)
        after_step()

    def on_start(task: str, seen: Observation) -> None:
        _say(console, f"Your task is to: {task}.", "bold")
        _say(console, seen.text)

    with EnvPool(partial(AlfworldEnv, max_steps=settings.max_steps), sampler.slots, 0) as pool:
        play(
            [game], policy=sampler, codec=codec, environments=_Announcing(pool, on_start), driver=driver,
            elicitation=elicitation_of(player.config), seed=seed, on_record=lambda game, record: records.append(record),
            on_step=on_step, both=True,
        )  # fmt: skip
    record = records[0]
    if record.env_error:
        _say(console, f"The environment failed: {record.env_error}", "bold")
    elif record.ended == "length":
        _say(
            console,
            f"The prompt has outgrown evaluate.max_length, {settings.max_length} tokens.",
            "bold",
        )
    _say(
        console,
        _verdict(record.success, len(shown)),
        "bold green" if record.success else "bold",
    )
    return record.success


class _Announcing:
    """Environments whose first observation is announced."""

    def __init__(self, environments, on_start: Callable[[str, Observation], None]):
        self._environments, self._on_start = environments, on_start
        self.step, self.faults = environments.step, environments.faults

    def reset(self, games: dict[int, Game]) -> dict:
        answers = self._environments.reset(games)
        for answer in answers.values():
            if isinstance(answer, tuple):
                self._on_start(*answer)
        return answers


def _show_step(
    console: Console,
    turn: Turn,
    number: int,
    max_steps: int,
    driver: Driver,
    answer: Observation | None,
) -> None:
    console.print()
    _say(console, f"Step {number} of {max_steps}", "bold")
    commands = turn.admissible_commands
    if commands is not None:
        _say(console, f"  admissible     {len(commands)}: {', '.join(commands)}", "dim")
    _say(console, f"  thought        {(turn.cot and turn.cot.thought) or '(none)'}")
    for response, kind, label in (
        (turn.cot, "cot", "CoT action   "),
        (turn.prompt, "prompt", "prompt action"),
    ):
        if response is None:
            continue
        notes = ["played"] if kind == driver else []
        if not response.valid:
            notes.append(f"invalid: {response.problem}")
        elif response.admissible is False:
            notes.append("not admissible")
        action = response.action if response.valid else response.text.strip()
        _say(
            console,
            f"  {label}  {action}" + (f"   ({', '.join(notes)})" if notes else ""),
            "cyan" if kind == driver else "",
        )
    if answer is not None:
        _say(console, f"  answer         {answer.text}")


def pauses(pause: bool, delay: float) -> Callable[[], None]:
    """What to do after each step: wait for Enter, or for `delay` seconds."""
    if delay < 0:
        raise UsageError(f"--delay is {delay:g}; it must be at least 0 seconds")
    return (lambda: sys.stdin.readline() and None) if pause else partial(time.sleep, delay)


def _verdict(won: bool, steps: int) -> str:
    return f"{'Won' if won else 'Not won'} after {steps} step{'' if steps == 1 else 's'}, score {int(won)} of 1."


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(visible(text), style=style), soft_wrap=True)
