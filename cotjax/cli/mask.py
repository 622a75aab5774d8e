"""`cotjax show-mask`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cotjax.cli.data import data_config
from cotjax.errors import UsageError

# Flags for a file without a config, with their defaults.
_OWN = {
    "drop": 0.0,
    "unit": "turn",
    "control": "action",
    "seed": 0,
    "layout": "trajectory",
    "trained": "all",
    "responses": "action",
    "tags": "<think>,</think>,<action>,</action>",
}


def add_mask(commands) -> None:
    """Add `show-mask` to the commands of the parser."""
    mask = commands.add_parser(
        "show-mask",
        help="show which tokens of a data file are trained on",
        description="Print the tokens of a data file by role, with their loss weight, and totals "
        "by role. With --config: exactly those of a run, with its tokenizer, template, layout, "
        "selection and masking.",
    )
    mask.add_argument(
        "--data",
        type=Path,
        help='JSONL of trajectories, or of {"id", "messages"} (default: data.trajectories)',
    )
    mask.add_argument(
        "--tokenizer",
        type=Path,
        help="folder with tokenizer.json (default for trajectories: the shipped one)",
    )
    mask.add_argument("--template", help="turn template of trajectories, or auto (default chatml)")
    mask.add_argument(
        "--limit", type=int, default=3, help="examples to print (default 3); totals are of all"
    )
    mask.add_argument("--html", type=Path, help="also write an HTML page")
    _add_run_flags(mask.add_argument_group("the mask of a run"))
    _add_file_flags(mask.add_argument_group("without a config"))
    mask.set_defaults(run=_show_mask)


def _add_run_flags(run) -> None:
    run.add_argument(
        "--config", type=Path, help="config file; --config.data.layout=step changes a field"
    )
    run.add_argument("--arm", help="arm whose mask is shown (default: the first that drops)")
    run.add_argument(
        "--epoch",
        type=int,
        default=0,
        help="epoch, if the subset is redrawn each epoch (default 0)",
    )
    run.add_argument(
        "--step",
        type=int,
        default=0,
        help="update, if the fraction follows a schedule (default 0)",
    )


def _add_file_flags(own) -> None:
    own.add_argument(
        "--drop",
        type=float,
        help="fraction of examples, turns or tokens that drop their action (default 0)",
    )
    own.add_argument("--unit", help="what is drawn: example, turn or token (default turn)")
    own.add_argument(
        "--control",
        help="what a draw drops: action, or a control such as 'random tokens' (default action)",
    )
    own.add_argument("--seed", type=int, help="seed of the draw (default 0)")
    own.add_argument(
        "--layout", help="layout of trajectories: trajectory or step (default trajectory)"
    )
    own.add_argument("--trained", help="for messages: all responses, or the last (default all)")
    own.add_argument(
        "--responses", help="for messages: action, or chat with calls and answers (default action)"
    )
    own.add_argument(
        "--tags", help=f"for messages: four tags, separated by commas (default {_OWN['tags']})"
    )


def _show_mask(arguments: argparse.Namespace) -> None:
    from cotjax.data.show_mask import show

    for name in ("limit", "epoch", "step"):
        if getattr(arguments, name) < 0:
            raise UsageError(f"--{name} is {getattr(arguments, name)}; it must be at least 0")
    read = _of_run if arguments.config or arguments.overrides else _of_file
    examples, title = read(arguments)
    show(examples, title, limit=arguments.limit, page=arguments.html)


def _of_run(arguments: argparse.Namespace) -> tuple:
    """Return (examples, title) of a run of the config in the arguments."""
    from cotjax.data.show_mask import about, run_shown
    from cotjax.study.arms import arms_of, dropping_of, member_named
    from cotjax.study.training_data import codec_of, drawn_of, selection_of

    given = [name for name in _OWN if getattr(arguments, name) is not None]
    if given:
        raise UsageError(
            f"--{given[0]} is for a file without a config; set the config's field instead, as in "
            "--config.seed=1"
        )
    flags = {
        "data.trajectories": arguments.data,
        "model.tokenizer": arguments.tokenizer,
        "data.template": arguments.template,
    }
    config = data_config(arguments, flags)
    arms = {arm: own for arm, own in arms_of(config).items() if not own.reinforced}
    if not arms:
        raise UsageError("every arm of the config plays what it learns from: there is no data")
    droppings = {arm: dropping_of(config, arm) for arm in arms}
    arm = next(
        (arm for arm, dropping in droppings.items() if dropping.drops()), next(iter(droppings))
    )
    if arguments.arm is not None:
        arm = member_named(config, arguments.arm)
    dropping, file = droppings[arm], Path(config.data.trajectories)
    epoch, step = arguments.epoch, arguments.step
    drawn = drawn_of(config, file)
    selection = selection_of(config, arms[arm], drawn)
    examples = run_shown(file, codec_of(config, file, drawn), selection, dropping, epoch, step)
    varies = dropping.redraw or callable(dropping.fraction)
    at = f"epoch {epoch}, step {step}, " if varies else ""
    return examples, f"{file}, arm {arm!r}, {at}{about(dropping, step)}"


def _of_file(arguments: argparse.Namespace) -> tuple:
    """Return (examples, title) of a file, read as the arguments say."""
    from cotjax.data.show_mask import about, read_shown
    from cotjax.data.tokens import Layout
    from cotjax.masking import Dropping, MaskError, Tags

    if arguments.data is None:
        raise UsageError("give --data FILE, or a --config that names one as data.trajectories")
    if arguments.arm is not None:
        raise UsageError("--arm needs a config: give --config too")
    own: dict[str, Any] = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in _OWN.items()
    }
    tags = own["tags"].split(",")
    if len(tags) != 4 or not all(tags):
        raise UsageError(
            f"--tags must be four texts separated by commas, as {_OWN['tags']}, not {own['tags']!r}"
        )
    for name, known in (("trained", ("all", "last")), ("responses", ("action", "chat"))):
        if own[name] not in known:
            raise UsageError(f"--{name} is {own[name]!r}; there are {', '.join(known)}")
    try:
        dropping = Dropping(own["drop"], own["seed"], own["unit"], control=own["control"])
    except MaskError as error:
        raise UsageError(str(error)) from None
    examples = read_shown(
        arguments.data,
        arguments.tokenizer,
        dropping,
        template=arguments.template or "chatml",
        layout=Layout(own["layout"]),
        chat={"trained": own["trained"], "responses": own["responses"], "tags": Tags(*tags)},
    )
    return examples, f"{arguments.data}, {about(dropping)}"
