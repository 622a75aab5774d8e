"""`cotjax autocoa`: the stages of AutoCoA, in one run's folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotjax.cli.study import shipped_config
from cotjax.errors import UsageError


def add_autocoa(commands: argparse._SubParsersAction) -> None:
    """Add `autocoa` to the commands of the parser."""
    text = "teach one model when and how to search (AutoCoA), stage by stage"
    command = commands.add_parser(
        "autocoa",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Complete stages are kept, and an interrupted "
        "one resumes with the same command.",
    )
    command.add_argument(
        "--config",
        type=Path,
        help="config file; change a field with --config.autocoa.stages.sft1.steps=100 (default: "
        "configs/autocoa_demo.py)",
    )
    command.add_argument("--quick", action="store_true", help="fewer updates and questions")
    command.add_argument("--out", type=Path, help="folder to write to (default: the config's)")
    command.add_argument("--until", metavar="STAGE", default="", help="run the stages up to this")
    command.set_defaults(run=_autocoa)


def _autocoa(arguments: argparse.Namespace) -> None:
    import json

    from cotjax.config import load_config
    from cotjax.model.platform import split_cpu
    from cotjax.runtime.claim import claim_run
    from cotjax.runtime.files import local_path
    from cotjax.runtime.progress import Reporter

    if arguments.quick and arguments.config:
        raise UsageError("--quick is a config of its own: give --quick or --config, not both")
    shipped = "autocoa_demo_quick.py" if arguments.quick else "autocoa_demo.py"
    config = load_config(arguments.config or shipped_config(shipped), arguments.overrides)
    if arguments.out:
        config.out = str(arguments.out)
    split_cpu(config.cpu_devices)
    from cotjax.study.autocoa_seeds import run_autocoa
    from cotjax.study.ready import check_folder, check_stages

    plans = check_stages(config)
    if arguments.until and arguments.until not in plans:
        raise UsageError(f"--until is {arguments.until!r}; there are {', '.join(plans)}")
    folder, mine = local_path(config.out), json.loads(config.to_json_best_effort())
    mine.pop("out")
    check_folder(folder, mine)
    claim_run(folder, mine)
    reporter = Reporter(folder / "log.txt")
    for name, digest in run_autocoa(config, reporter, arguments.until).items():
        root, _, stage = name.rpartition("/")
        reporter.say(f"{name}: {folder / root / 'stages' / stage / 'checkpoints'} ({digest})")
