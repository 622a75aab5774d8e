"""AutoCoA from several training seeds (`config.seeds`): a run each, and one report of all.

<run>/games/            of all seeds
<run>/seeds/<seed>/     a run of all stages, as `cotjax.study.autocoa` describes it
<run>/stages.json       what was trained and played, with the seeds
<run>/report.html, searches.json, figures/   of all seeds together
"""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from cotjax.errors import UsageError
from cotjax.report.autocoa import ABOUT, SEEDS
from cotjax.runtime.files import local_path, read_json, write_atomic
from cotjax.runtime.progress import Reporter
from cotjax.study.autocoa import open_autocoa
from cotjax.study.games import prepare_games


def run_autocoa(config: ConfigDict, reporter: Reporter, until: str = "") -> dict[str, str]:
    """Run the stages, from each of the config's seeds; return the hash of each one's checkpoint.

    The run's folder is claimed. `until`: as of `AutoCoA.run`, whose errors it raises.
    """
    if config.autocoa.closed_book and config.games.root:
        raise UsageError(
            f"autocoa.closed_book is {config.autocoa.closed_book}, and what the base knows is kept "
            "with the run's own questions: set games.root to ''"
        )
    if not config.seeds:
        return open_autocoa(config, reporter).run(until)
    folder, hashes = local_path(config.out), dict[str, str]()
    prepare_games(config)
    for seed in config.seeds:
        own = config.copy_and_resolve_references()
        own.seed, own.seeds = seed, ()
        own.out = str(folder / SEEDS / str(seed))
        own.games.root = config.games.root or str(folder / "games")
        reporter.say(f"Seed {seed}: {own.out}")
        made = open_autocoa(own, reporter).run(until)
        hashes |= {f"{SEEDS}/{seed}/{stage}": digest for stage, digest in made.items()}
    _report(folder, config, reporter)
    return hashes


def _report(folder: Path, config: ConfigDict, reporter: Reporter) -> None:
    """Write the report of all seeds, if all have played."""
    files = [folder / SEEDS / str(seed) / ABOUT for seed in config.seeds]
    if not all(file.exists() for file in files):
        return
    # The page's colours come with matplotlib, which is slow to import.
    from cotjax.report.autocoa_page import make_report

    about = read_json(files[0], "cotjax autocoa")
    about |= {"seeds": list(config.seeds), "games": config.games.root or "games"}
    with reporter.stage("report", "Writing the report of all seeds"):
        write_atomic(folder / ABOUT, json.dumps(about, indent=1) + "\n")
        text = make_report(folder)
    reporter.say(text)
    reporter.say(f"Report of {len(files)} seeds: {folder / 'report.html'}")
