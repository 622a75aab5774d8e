"""Two cells of the demo, trained and measured: the verdict flips with what was planted.

The same games, episodes and thoughts train both arms. In one, 30 % of the trajectories are written
without thoughts, so that the prompt action learns as much as the CoT action.
"""

import json
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.diagnostics.share import Verdict
from cotjax.report.summarize import summarize

CONFIG = """
import sys

sys.path.insert(0, {configs!r})
import demo


def get_config():
    config = demo.get_config()
    config.games.train, config.games.in_domain, config.games.ood_rooms = 40, 48, 0
    config.train.information_examples = 0
    # Expert states alone at the last checkpoint; at the base a few steps of episodes, too.
    config.evaluate.elicitations, config.evaluate.offline = ("prompt",), ("cot",)
    config.evaluate.episodes_at = (0,)
    config.train.save_every = config.train.steps
    config.arms = {{cell: demo.CELLS[cell] for cell in ("named", "named_mixed")}}
    return config
"""


@pytest.mark.slow
def test_the_verdict_flips_with_what_was_planted(tmp_path):
    configs = Path(__file__).parents[2] / "configs"
    config = tmp_path / "planted.py"
    config.write_text(CONFIG.format(configs=str(configs)))
    out = tmp_path / "run"
    assert main(["study", "--config", str(config), "--out", str(out)]) == 0
    summary = summarize(out)
    said = {arm: summary.placed(arm, "in_domain") for arm in ("named", "named_mixed")}
    print({arm: row.placement for arm, row in said.items()})
    assert {row.measure for row in said.values()} == {"d1"}
    assert said["named"].placement.verdict is Verdict.ADVANTAGE
    assert said["named_mixed"].placement.verdict is Verdict.PROMPT
    # The gap widens where thoughts alone are trained, and narrows where actions are, too.
    assert said["named"].placement.gap.sign > 0 > said["named_mixed"].placement.gap.sign
    written = json.loads((out / "summary.json").read_text())["placements"]
    assert {row["placement"]["verdict"] for row in written} >= {
        "in the CoT advantage",
        "in the prompt action",
    }
