"""How fast the viewer opens: made-up episodes, their viewer, and a headless Chromium."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cotjax.assets import BASE_FOLDER
from cotjax.bench.browser import Browser
from cotjax.data.codec import Codec
from cotjax.report.viewer.make import make_viewer
from cotjax.rollout.record import (
    Choice,
    Driver,
    PlayedGame,
    Record,
    Response,
    Timing,
    Turn,
    record_path,
    write_record,
)

_ARMS = ("base", "named", "named_mixed", "unnamed", "direct")
_DRIVERS: tuple[Driver, ...] = ("cot", "prompt", "reference")
_PLACES = ("countertop 1", "fridge 1", "cabinet 1", "cabinet 2", "drawer 1", "shelf 1")
_THINGS = ("plate 1", "apple 1", "mug 1", "knife 1")
_READY = "document.documentElement?.dataset.ready"
_ELICITATION = {
    "temperature": 0.0,
    "max_new_tokens": 96,
    "max_action_tokens": 16,
    "max_steps": 20,
    "cot_prefix": "",
    "prompt_prefix": "<action>",
}


def write_made_up(run: Path, episodes: int, steps: int = 8) -> None:
    """Write a run's folder with this many episodes of the demo's shape.

    Its texts are those of made-up steps, its token ids those that the demo's tokenizer gives them.
    """
    shutil.copytree(BASE_FOLDER, run / "tokenizer", dirs_exist_ok=True)
    codec = Codec.load(BASE_FOLDER)
    places = [(arm, step) for arm in _ARMS for step in ((0,) if arm == "base" else (30, 60))]
    for number in range(episodes):
        arm, checkpoint = places[number % len(places)]
        driver = _DRIVERS[number // len(places) % len(_DRIVERS)]
        game = number // (len(places) * len(_DRIVERS))
        record = _record(codec, arm, checkpoint, driver, game, steps)
        path = record_path(
            run / "records",
            arm=arm,
            checkpoint=checkpoint,
            driver=driver,
            game_id=record.game.id,
        )
        write_record(path, record)
    arms = {arm: {"label": arm, "fraction": 0.3, "seed": 0, "cell": arm} for arm in _ARMS[1:]}
    about = {
        "title": "Made-up episodes",
        "arms": arms,
        "prompt": {"settings": {"template": "chatml"}},
    }
    (run / "run.json").write_text(json.dumps(about))


def measure(episodes: int, repeats: int, console: Console) -> None:
    """Print how long the viewer of this many episodes takes to make, and to open.

    An empty page is opened before each time: what it takes is the browser's start of a page, and
    grows with what else the machine does.

    Raises UsageError where there is no Chromium.
    """
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        run = Path(folder) / "run"
        write_made_up(run, episodes)
        start = time.perf_counter()
        viewer = make_viewer([run], run / "viewer")
        made = time.perf_counter() - start
        empty = write_empty(Path(folder))
        opened = [
            (seconds_to_open(browser, empty), seconds_to_open(browser, viewer.index))
            for _ in range(repeats)
        ]
    table = Table(title=f"The viewer of {episodes:,} made-up episodes, {repeats} times")
    for column in ("what", "median", "slowest"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {
        "an empty page": [empty["ready"] for empty, _ in opened],
        "until the list is there": [viewer["listed"] for _, viewer in opened],
        "and an episode": [viewer["ready"] for _, viewer in opened],
        "of which the page's thread computes": [viewer["busy"] for _, viewer in opened],
    }
    for words, values in rows.items():
        table.add_row(words, f"{median(values):.2f} s", f"{max(values):.2f} s")
    times = [viewer["ready"] / empty["ready"] for empty, viewer in opened]
    table.add_row(
        "an episode, in times of an empty page", f"{median(times):.1f}", f"{max(times):.1f}"
    )
    table.add_row("made in", f"{made:.1f} s", "")
    table.add_row("data", f"{viewer.data_bytes / 1e6:.1f} MB", f"{viewer.chunks} files")
    console.print(table)


def write_empty(folder: Path) -> Path:
    """Write a page that says when it is there, and does nothing else."""
    path = folder / "empty.html"
    said = "document.documentElement.dataset"
    path.write_text(
        "<!doctype html><title>Empty</title><script>"
        f"{said}.listed = {said}.ready = Math.max(1, Math.round(performance.now()))</script>"
    )
    return path


def seconds_to_open(browser: Browser, index: Path) -> dict[str, float]:
    """Return the seconds until a page's list is there, an episode too, and of computing."""
    page = browser.page()
    page.send("Performance.enable", timeDomain="threadTicks")
    page.open(index.resolve().as_uri(), _READY)
    said = {
        name: float(page.run(f"document.documentElement.dataset.{name}")) / 1000
        for name in ("listed", "ready")
    }
    found = page.send("Performance.getMetrics")["metrics"]
    page.send("Page.close")
    busy = next(each["value"] for each in found if each["name"] == "TaskDuration")
    return said | {"busy": busy}


def _record(
    codec: Codec, arm: str, checkpoint: int, driver: Driver, game: int, steps: int
) -> Record:
    rng = random.Random(f"{game}/{driver}" if driver == "reference" else f"{game}/{driver}/{arm}")
    model = random.Random(f"{game}/{driver}/{arm}/{checkpoint}")
    turns = [_turn(codec, driver, number, rng, model) for number in range(steps)]
    won = driver != "reference" and model.random() < 0.5
    return Record(
        world="alfworld",
        arm=arm,
        checkpoint=checkpoint,
        checkpoint_hash=f"{arm} {checkpoint}",
        games_hash="made up",
        domain="in_domain" if game % 2 else "ood",
        driver=driver,
        game=PlayedGame(id=f"made-up-{game:04d}", task_type="pick", split="valid_unseen"),
        seed=0,
        sample=0,
        task="put a plate in fridge",
        success=won,
        score=None,
        ended="won" if won else "step_limit",
        env_error=None,
        env_faults=(),
        elicitation=_ELICITATION,
        steps=tuple(turns),
        final_observation="you put the plate 1 in the fridge 1.",
        timing=Timing(environment_s=0.1, waited_s=0.0, sampler_s=0.2, total_s=0.3),
    )


def _turn(
    codec: Codec, driver: Driver, number: int, rng: random.Random, model: random.Random
) -> Turn:
    here, seen = rng.choice(_PLACES), rng.choice(_THINGS)
    commands = (*(f"go to {place}" for place in _PLACES), f"take {seen} from {here}", "look")
    observation = f"You arrive at {here}. On the {here}, you see a {seen}."
    thought = f"i need a plate. the {seen} is on the {here}. next i go to {model.choice(_PLACES)}."
    cot, prompt, expert = (each.choice(commands) for each in (model, model, rng))
    if model.random() < 0.5:
        prompt = cot
    executed = {"cot": cot, "prompt": prompt, "reference": expert}[str(driver)]
    scores = tuple(round(-8 * model.random(), 6) for _ in commands)
    best = commands[scores.index(max(scores))]
    ids = codec.first_prompt("put a plate in fridge", observation) if number == 0 else [0] * 30
    return Turn(
        observation=observation,
        admissible_commands=commands,
        prompt_ids=tuple(ids),
        prompt_length=200 + 40 * number,
        cot=None if driver == "prompt" else _response(codec, thought, cot, model),
        prompt=_response(codec, None, prompt, model),
        prompt_constrained=Choice(
            action=best,
            by_total=best,
            by_mean=best,
            logprobs=scores,
            tokens=(5,) * len(commands),
            prefix_ids=tuple(codec.action_prefix),
            ids=(),
        ),
        reference=expert if driver == "reference" else None,
        executed=executed,
        accepted=model.random() < 0.9,
        score=None,
    )


def _response(codec: Codec, thought: str | None, action: str, model: random.Random) -> Response:
    head = f"<think> {thought} </think> <action>" if thought else ""
    ids = codec.encode(f"{head} {action} </action>")
    logprobs = tuple(round(-(model.random() ** 4), 6) for _ in ids)
    fields: dict[str, Any] = {"reason": None, "problem": None, "admissible": True, "stopped": True}
    return Response(
        text=codec.decode(ids),
        thought=thought,
        action=action,
        valid=True,
        ids=tuple(ids),
        new_tokens=len(ids),
        seed=0,
        logprob=sum(logprobs),
        logprobs=logprobs,
        **fields,
    )
