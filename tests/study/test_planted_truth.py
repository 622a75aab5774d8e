"""Two cells of the demo, trained and measured: the verdict flips with what was planted.

The same games, episodes and thoughts train both arms. In one, 30 % of the trajectories are written
without thoughts, so that the prompt action learns as much as the CoT action.
"""

from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.diagnostics.share import Verdict
from cotjax.report.summarize import summarize

CONFIG = """
import demo


def get_config():
    config = demo.get_config()
    config.games.train, config.games.in_domain, config.games.ood = 40, 32, 0
    config.train.information_examples = 0
    # Expert states alone at the last checkpoint; at the base a few steps of episodes, too.
    config.evaluate.elicitations = ("prompt",)
    config.evaluate.offline = ("cot", "cot_constrained", "prompt_constrained")
    config.evaluate.episodes_at = (0,)
    config.train.save_every = config.train.steps
    config.primary.kinds = ("cot", "prompt")  # clear with half of the games
    config.arms = {cell: demo.CELLS[cell] for cell in ("named", "named_mixed")}
    return config
"""


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_verdict_flips_with_what_was_planted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "configs")
    config = tmp_path / "planted.py"
    config.write_text(CONFIG)
    out = tmp_path / "run"
    assert main(["study", "--config", str(config), "--out", str(out)]) == 0
    summary = summarize(out)
    said = {
        (row.arm, row.constrained): row.placement
        for row in summary.placements
        if row.measure == "d1"
    }
    print(said)
    assert said["named", False].verdict is Verdict.ADVANTAGE
    assert said["named_mixed", False].verdict is Verdict.PROMPT
    # The gap widens where thoughts alone are trained, and narrows where actions are, too.
    assert said["named", False].gap.sign > 0 > said["named_mixed", False].gap.sign
    # Chosen among the admissible actions, so that no form is in the way: outside the family, so
    # described by intervals.
    assert said["named", True].verdict is Verdict.DESCRIBED
    assert said["named", True].share.high < 0.5
    assert said["named_mixed", True].share.low > said["named", True].share.high
