"""Arms that start from another arm's checkpoint, and arms that play: report and check."""

import json

import pytest
from helpers.studies import write_episode

from cotjax.check.main import check
from cotjax.report.page import make_report
from cotjax.report.rewards import rewards
from cotjax.report.viewer.make import make_viewer
from cotjax.runtime.members import member_folders, natural

GAMES = 10
START = {"start": "short@30"}
ARMS = {
    "short": {"label": "short SFT", "fraction": 0.0, "steps": 30, "direct_share": 0.0},
    "sft": {"label": "SFT", "fraction": 0.0, "direct_share": 0.0, **START},
    "dpo": {"label": "DPO", "objective": "dpo", "direct_share": 0.0, **START},
    "dpo_plus": {
        "label": "DPO+",
        "objective": "dpo",
        "fraction": 0.3,
        "direct_share": 0.0,
        **START,
    },
    "grpo": {"label": "GRPO", "objective": "grpo", "direct_share": None, **START},
    "grpo_plus": {"label": "GRPO+", "objective": "grpo", "fraction": 0.3, **START},
    "grpo_fast": {"label": "fast", "objective": "grpo", "learning_rate": 0.1, **START},
}
# Games of GAMES that are won by CoT actions; one fewer by prompt actions.
WON = {
    ("base", 0): 1,
    ("short", 30): 4,
    **{(arm, 60): 7 for arm in ARMS if arm != "short"},
    ("grpo", 60): 9,
    ("grpo_plus", 60): 8,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    for (arm, step), won in WON.items():
        for driver, number in (("cot", won), ("prompt", won - 1)):
            for game in range(GAMES):
                write_episode(
                    folder,
                    f"game-{game}",
                    [("look", "look"), ("take plate 1", "nothing")],
                    arm=arm,
                    checkpoint=step,
                    driver=driver,
                    success=game < number,
                )
    about = {
        "name": "starts",
        "arms": ARMS,
        "checkpoints": [0, 30, 60],
        "config": {"primary": {"measure": "d3", "kinds": ["cot", "prompt"]}},
    }
    (folder / "run.json").write_text(json.dumps(about))
    for arm in ("grpo", "grpo_plus"):
        rows = [
            {"step": step, "reward": {"mean": step / 50}, "success": 0.5} for step in range(1, 61)
        ]
        rows[6] |= {"reward": None, "success": None}
        (folder / "arms" / arm).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "arms" / arm / "metrics.jsonl").write_text(lines)
    information = {
        "arm": "short",
        "checkpoint": 30,
        "action_given_thought": {"token": 0.1, "action": 0.2},
        "action_given_prompt": None,
        "loss_share": {"ACTION": 0.2},
        "gradient_share": {},
        "gradient_norm": {},
        "removed_share": 0.0,
        "examples": 1,
        "tokens": 9,
    }
    (folder / "arms" / "short").mkdir()
    (folder / "arms" / "short" / "information.jsonl").write_text(json.dumps(information) + "\n")
    return folder, make_report(folder)


def test_an_arm_is_compared_with_what_it_starts_from(run):
    _, summary = run
    assert summary.last_checkpoint == 60
    assert summary.change("grpo", "in_domain", "d3_cot").estimate.value == pytest.approx(0.5)
    assert summary.point("grpo", 0, "in_domain").metrics["d3_cot"].value == pytest.approx(0.4)
    assert summary.point("short", 0, "in_domain").metrics["d3_cot"].value == pytest.approx(0.1)
    ends = [summary.label_of(point) for point in summary.ends("in_domain")]
    assert ends[:3] == ["base", "short SFT, step 30", "SFT, step 60"]
    # The short one is no arm that is compared, and has no verdict.
    assert summary.baseline == "sft" and "short" not in summary.compared
    assert summary.placed("short", "in_domain") is None
    assert not any("short SFT: no records" in warning for warning in summary.warnings)


def test_arms_are_compared_with_what_differs_by_dropping_alone(run):
    _, summary = run
    minus = {name: arm.minus for name, arm in summary.arms.items()}
    assert (minus["dpo_plus"], minus["grpo_plus"]) == ("dpo", "grpo")
    assert minus["grpo"] == minus["dpo"] == "sft"
    # Of another learning rate no arm is the twin.
    assert list(summary.arms)[:4] == ["sft", "dpo", "dpo_plus", "grpo"]
    assert list(summary.arms)[-1] == "short"


def test_rewards_are_shown_and_what_has_none_says_so(run):
    folder, summary = run
    assert len(summary.rewards["grpo"]) == 60 and summary.rewards["grpo"][6].reward is None
    (section,) = rewards(summary)
    rows = {row.label: row.cells for row in section.tables[0].rows}
    assert section.tables[0].columns[:2] == ("steps 1 to 10", "steps 11 to 20")
    assert rows["GRPO"][1].text == "0.31" and rows["GRPO"][1].behind == "50 % won"
    assert set(rows["SFT"]) == set(rows["DPO"]) == {"not defined"}
    assert rows["fast"][0].text == "–"
    page = (folder / "report.html").read_text()
    words = "Reward while training, GRPO: mean reward 0.03 at first, 1.20 at step 60."
    assert words in page and "Reward while training, SFT:" not in page
    assert "Reward while training" in page and "episodes that it plays, from short SFT" in page
    assert "not defined" in page.partition("Information in the action</h")[2].partition("</sec")[0]


def test_the_check_finds_the_same_and_a_wrong_start(run):
    folder, _ = run
    said = []
    assert check(folder, said.append), "\n".join(said)
    text = (folder / "summary.json").read_text()
    summary = json.loads(text)
    summary["rewards"]["grpo"][3]["reward"] += 0.01
    summary["arms"]["grpo"]["start"] = "base@0"
    (folder / "summary.json").write_text(json.dumps(summary))
    said.clear()
    assert not check(folder, said.append)
    assert said[-1] == "2 differ." and any("rewards" in line for line in said)
    (folder / "summary.json").write_text(text)


def test_names_are_sorted_as_readers_do(tmp_path):
    names = ["arm_10", "arm_2", "arm", "b", "arm_2b", "2", "10", "arm_02"]
    expected = ["2", "10", "arm", "arm_02", "arm_2", "arm_2b", "arm_10", "b"]
    assert sorted(names, key=natural) == expected
    for name in ("arm_10", "arm_2"):
        (tmp_path / "arms" / name).mkdir(parents=True)
    assert list(member_folders(tmp_path / "arms")) == ["arm_2", "arm_10"]
    about = {"name": "order", "arms": {name: {"label": name} for name in ("arm_10", "arm_2")}}
    for arm in ("arm_10", "arm_2"):
        for step in (120, 30):
            write_episode(tmp_path, "game", arm=arm, checkpoint=step)
    (tmp_path / "run.json").write_text(json.dumps(about))
    summary = make_report(tmp_path)
    assert list(summary.arms) == ["arm_2", "arm_10"]
    assert list(summary.checkpoint_hashes) == ["arm_2/30", "arm_2/120", "arm_10/30", "arm_10/120"]
    assert check(tmp_path, lambda line: None)
    make_viewer([tmp_path], tmp_path / "viewer")
