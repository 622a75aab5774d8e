"""`cotjax play`: a person plays a game in the terminal, or watches a checkpoint play it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text

from cotjax.config import default_config
from cotjax.envs.base import Game, Observation, Play
from cotjax.envs.worlds import World
from cotjax.errors import DataError, EnvError, UsageError
from cotjax.formats import Example, Prompt, first_turn
from cotjax.model.config import ModelConfig
from cotjax.rollout.contracts import Environments
from cotjax.rollout.record import Driver, Episode, Turn
from cotjax.runtime.terminal import visible

_HELP = (
    "type a command, ? for the commands that work here, a number to take one of them, quit to leave"
)


def choose_game(
    world: World, game: Path | None, games: Path | None, split: str, index: int
) -> Game:
    """Return the game of `--game PATH`, or number `index` of `--games FOLDER --split S`.

    Without either, the world's own games are taken.

    Raises UsageError if there is no such game.
    """
    if game is not None and games is None:
        return world.game_at(game)
    if game is not None:
        raise UsageError("give --game PATH, or --games FOLDER with --split and --index, not both")
    playable = world.games(games or "", split)
    if not 0 <= index < len(playable):
        raise UsageError(
            f"--index {index}: there are games 0 to {len(playable) - 1} in split {split!r}"
        )
    return playable[index]


def play_by_hand(
    world: World, game: Game, console: Console, lines: TextIO = sys.stdin, max_steps: int = 30
) -> bool:
    """Let a person play and return whether the game was won. The end of `lines` means quit."""
    env = world.make_env(max_steps)()
    task, seen = env.reset(game)
    _say_start(console, world, task, seen)
    _say(console, _HELP, "dim")
    steps = 0
    while not seen.done:
        console.print("> ", end="")
        line = lines.readline()
        if not lines.isatty():
            _say(console, line.strip() if line else "quit")
        command = _command(line.strip(), seen, console) if line else "quit"
        if command == "quit":
            break
        if command is None:
            continue
        seen = env.step(command)
        steps += 1
        _say(console, seen.text)
        _say(console, f"[step {steps} of {max_steps}, score {_score(seen)} of 1]", "dim")
    _say_end(console, seen, steps)
    env.close()
    return seen.won


def _command(line: str, seen: Observation, console: Console) -> str | None:
    """Return the command of a line; None for a question, which is answered here."""
    commands = seen.admissible_commands
    if line == "?" and commands is None:
        _say(console, "this world does not list its commands", "dim")
    elif line == "?":
        for number, command in enumerate(commands or (), start=1):
            _say(console, f"{number:4} {command}")
    elif line in ("", "help"):
        _say(console, _HELP, "dim")
    elif commands is not None and line.isdecimal() and not 1 <= int(line) <= len(commands):
        _say(console, f"there are commands 1 to {len(commands)} here: ? shows them", "dim")
    elif commands is not None and line.isdecimal():
        command = commands[int(line) - 1]
        _say(console, command)
        return command
    else:
        return line
    return None


@dataclass(frozen=True)
class Player:
    """A checkpoint that plays.

    Attributes:
      name: for the terminal.
      params: restores the weights onto a mesh.
      tokenizer: folder with tokenizer.json.
      template: turn template.
      config: a config whose `evaluate` and `prompt` sections say how to play.
      examples: the prompt's.
    """

    name: str
    model: ModelConfig
    params: Callable[[Mesh], Any]
    tokenizer: Path
    template: str
    config: ConfigDict
    examples: tuple[Example, ...] = ()


def world_of_run(run: Path) -> str:
    """Return the name of a run's world. Older runs, which name none, play ALFWorld."""
    return _saved_config(run).get("world", default_config().world)


def player_of_run(run: Path, arm: str, step: int | None) -> Player:
    """Return a run's checkpoint, elicited as in the run. Raises UsageError if there is none."""
    from cotjax.study.export import find_checkpoint
    from cotjax.study.training_data import kept_of

    model, checkpoints, step = find_checkpoint(run, arm, step)
    saved, config = _saved_config(run), default_config()
    try:
        known = {
            name: value for name, value in saved["evaluate"].items() if name in config.evaluate
        }
        config.evaluate.update(known)
        template = saved["data"]["template"]
        config.data.layout = saved["data"].get("layout", config.data.layout)
        # Older runs have the system message in another section.
        config.prompt.update({"system": saved["data"].get("system", "")} | saved.get("prompt", {}))
    except KeyError as error:
        raise DataError(
            f"{run / 'config.json'}: not a run's config (no {error}); "
            "give --model with an exported checkpoint"
        ) from None
    restore = partial(checkpoints.restore_params, step, model)
    name, tokenizer, examples = f"{arm}, step {step}", run / "tokenizer", kept_of(config, run)
    return Player(name, model, restore, tokenizer, template, config, examples.examples)


def _saved_config(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{run}: nothing was trained here; give a run's folder") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{run / 'config.json'}: not a run's config ({error}); "
            "give --model with an exported checkpoint"
        ) from None


def player_of_model(folder: Path, template: str) -> Player:
    """Return the model of a Hugging Face, Orbax or PEFT folder. Raises UsageError if none."""
    from cotjax.weights.convert import load_params, read_config, tokenizer_folder

    return Player(
        name=str(folder),
        model=read_config(folder),
        params=partial(load_params, folder),
        tokenizer=tokenizer_folder(folder),
        template=template,
        config=default_config(),
    )


def watch(
    world: World,
    game: Game,
    player: Player,
    console: Console,
    *,
    driver: Driver,
    max_steps: int | None,
    seed: int,
    after_step: Callable[[], None],
) -> bool:
    """Show a checkpoint play and return whether it won.

    `driver`: "cot" or "prompt", the kind of action that is played; both kinds are shown.
    """
    from cotjax.envs.pool.pool import EnvPool
    from cotjax.model.sharding import make_mesh
    from cotjax.rollout.loop import play
    from cotjax.study.evaluate import elicitation_of
    from cotjax.study.players import sampler_of

    settings = player.config.evaluate
    settings.max_steps = max_steps or settings.max_steps
    codec = _codec_of(player, world)
    mesh = make_mesh()
    settings.max_length = min(settings.max_length, player.model.max_length)
    sampler = sampler_of(settings, player.model, codec, mesh, slots=1)
    sampler.load(player.params(mesh))
    kind = "CoT" if driver == "cot" else "prompt"
    _say(console, f"{player.name} plays {game.id} by {kind} actions", "bold")
    records: list[Episode] = []
    steps = 0
    last: Observation | None = None

    def on_step(turn: Turn, answer: Observation | None) -> None:
        nonlocal steps, last
        steps, last = steps + 1, answer
        _show_step(console, turn, f"Step {steps} of {settings.max_steps}", driver, answer)
        after_step()

    with EnvPool(world.make_env(settings.max_steps), sampler.slots, 0) as pool:
        play(
            [Play(game)],
            policy=sampler,
            codec=codec,
            environments=_Announcing(pool, partial(_say_start, console, world)),
            driver=driver,
            elicitation=elicitation_of(player.config, codec.template),
            seed=seed,
            on_record=lambda game, record: records.append(record),
            on_step=on_step,
            kinds=("cot", "prompt"),
        )
    (record,) = records
    _say_cut(console, record, settings.max_length)
    _say_end(console, last, steps)
    return record.success


def _codec_of(player: Player, world: World) -> Any:
    from cotjax.data.codec import Codec
    from cotjax.data.tokens import GROWING

    growing = player.config.data.layout == GROWING
    prompt = Prompt.of(player.config.prompt, world, player.examples, growing=growing)
    return Codec.load(player.tokenizer, player.template, prompt)


def _say_cut(console: Console, episode: Episode, max_length: int) -> None:
    """Say what ended an episode from outside the game, if anything did."""
    if episode.env_error:
        _say(console, f"The environment failed: {episode.env_error}", "bold")
    elif episode.ended == "length":
        text = f"The prompt is longer than evaluate.max_length, {max_length} tokens."
        _say(console, text, "bold")


class _Announcing:
    """Environments that announce each game's task and first observation."""

    def __init__(
        self, environments: Environments, on_start: Callable[[str, Observation], None]
    ) -> None:
        self._environments, self._on_start = environments, on_start

    def reset(self, games: dict[int, Game]) -> Mapping[int, tuple[str, Observation] | EnvError]:
        answers = self._environments.reset(games)
        for answer in answers.values():
            if isinstance(answer, tuple):
                self._on_start(*answer)
        return answers

    def step(self, actions: dict[int, str]) -> Mapping[int, Observation | EnvError]:
        return self._environments.step(actions)

    def faults(self, slot: int) -> Sequence[str]:
        return self._environments.faults(slot)


def _show_step(
    console: Console,
    turn: Turn,
    title: str,
    driver: Driver,
    answer: Observation | None,
) -> None:
    console.print()
    _say(console, title, "bold")
    commands = turn.admissible_commands
    listed = "not listed" if commands is None else f"{len(commands)}: {', '.join(commands)}"
    _say(console, f"  admissible     {listed}", "dim")
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
        remark = f"   ({', '.join(notes)})" if notes else ""
        _say(console, f"  {label}  {action}{remark}", "cyan" if kind == driver else "")
    if answer is not None:
        _say(console, f"  answer         {answer.text}")


def pauses(pause: bool, delay: float) -> Callable[[], None]:
    """Return a function to call after each step: it waits for Enter, or for `delay` seconds."""
    if delay < 0:
        raise UsageError(f"--delay is {delay:g}; it must be at least 0 seconds")
    return _wait_for_enter if pause else partial(time.sleep, delay)


def _wait_for_enter() -> None:
    sys.stdin.readline()


def _say_start(console: Console, world: World, task: str, seen: Observation) -> None:
    _say(console, first_turn(task, "", world.task_text).strip(), "bold")
    _say(console, seen.text)


def _say_end(console: Console, seen: Observation | None, steps: int) -> None:
    won = seen is not None and seen.won
    text = f"{'Won' if won else 'Not won'} after {steps} step{'' if steps == 1 else 's'}"
    _say(console, f"{text}, score {_score(seen)} of 1.", "bold green" if won else "bold")


def _score(seen: Observation | None) -> str:
    """Return the environment's score; of a world that has none, 1 for a won game, else 0."""
    if seen is None:
        return "0"
    return f"{int(seen.won) if seen.score is None else seen.score:.3g}"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(visible(text), style=style), soft_wrap=True)
