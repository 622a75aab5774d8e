"""Which result binds which setting: a table of all stages of a run."""

import json

import pytest

from cotjax.config import default_config, set_field
from cotjax.errors import UsageError
from cotjax.study.ready import check_folder

# The results of a run, in the order in which they appear.
STAGES = ("claimed", "collected", "trained", "expert", "played")
# An override -> the stage from which on it is refused; None: it may always change.
BOUND = {
    # How fast, and on what.
    "title=Another": None,
    "workers=7": None,
    "cpu_devices=2": None,
    "mesh.fsdp=2": None,
    "train.remat=none": None,
    "train.save_every=7": None,
    "evaluate.slots=3": None,
    "evaluate.halves=True": None,
    "evaluate.tensor=2": None,
    "evaluate.env_retries=5": None,
    "evaluate.start_timeout=5.0": None,
    "evaluate.reset_timeout=5.0": None,
    "evaluate.step_timeout=5.0": None,
    # Which episodes are played besides those that were.
    "evaluate.elicitations=cot,prompt,instructed": None,
    "evaluate.offline=prompt_constrained": None,
    "evaluate.episodes_at=0,200": None,
    "evaluate.samples=3": None,
    # How episodes are played, and which games.
    "evaluate.max_steps=31": "played",
    "evaluate.max_length=1024": "played",
    "evaluate.max_new_tokens=97": "played",
    "evaluate.max_action_tokens=17": "played",
    "evaluate.temperature=0.5": "played",
    "evaluate.top_k=5": "played",
    "evaluate.top_p=0.9": "played",
    "evaluate.repetition_penalty=1.1": "played",
    "evaluate.no_repeat_ngram_size=3": "played",
    "evaluate.cot_prefix=<think>": "played",
    "evaluate.search=simulated": "played",
    "evaluate.max_result_tokens=99": "played",
    # Of kinds of action that were not asked for.
    "evaluate.constrained_by=mean": None,
    "evaluate.instruction=Do not reason.": None,
    "games.in_domain=61": "expert",
    "games.ood=31": "expert",
    "games.ood_domains=()": "expert",
    "games.eval_split=valid_seen": "expert",
    # What is trained on, and how.
    "games.train=5": "collected",
    "collect.slips=0.1": "collected",
    "games.seed=1": "collected",
    "seed=1": "collected",
    "prompt.instruction=world": "trained",
    "data.direct_share=0.3": "trained",
    "train.learning_rate=0.1": "trained",
    "masking.unit=token": "trained",
    "model.lora_rank=4": "trained",
    "arms.sft.fraction=0.2": "trained",
    "arms.sft.label=Another": None,
}


def reach(folder, stage, *overrides):
    """Leave in a folder what a run of the default config has made up to a stage."""
    config = default_config()
    for override in overrides:
        set_field(config, override)
    made = STAGES[: STAGES.index(stage) + 1]
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_best_effort())
    if "collected" in made:
        (folder / "trajectories").mkdir()
        (folder / "trajectories" / "train.jsonl").touch()
    if "trained" in made:
        (folder / "arms" / "sft" / "checkpoints" / "40").mkdir(parents=True)
    if "expert" in made:
        (folder / "trajectories" / "held_out.jsonl").touch()
    if "played" in made:
        (folder / "records" / "sft").mkdir(parents=True)
        (folder / "records" / "sft" / "game.json").touch()
    return folder


def refused(folder, *overrides):
    """Return the message for the default config with changes; None where it may resume."""
    config = default_config()
    for override in overrides:
        set_field(config, override)
    try:
        check_folder(folder, json.loads(config.to_json_best_effort()))
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("stage", STAGES)
def test_a_setting_may_change_until_a_result_depends_on_it(stage, tmp_path):
    folder = reach(tmp_path / "run", stage)
    for override, first in BOUND.items():
        message = refused(folder, override)
        name = override.partition("=")[0]
        if first is not None and STAGES.index(stage) >= STAGES.index(first):
            assert message is not None, f"{override} was accepted when the run was {stage}"
            assert name in message and "there" in message and "with --out" in message
        else:
            assert message is None, message


def test_every_setting_of_playing_is_in_the_table():
    known = {override.partition("=")[0] for override in BOUND}
    assert {f"evaluate.{name}" for name in default_config().evaluate} <= known


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("cot_constrained", "evaluate.constrained_by=mean"),
        ("instructed", "evaluate.instruction=Do not reason."),
    ],
)
def test_the_settings_of_a_kind_that_was_asked_for_are_bound(kind, setting, tmp_path):
    asked = f"evaluate.offline={kind}"
    folder = reach(tmp_path / "run", "played", asked)
    assert refused(folder, asked) is None
    assert setting.partition("=")[0] in refused(folder, asked, setting)
    assert setting.partition("=")[0] in refused(folder, setting)  # also once the kind is left out


def test_records_of_two_settings_are_never_mixed_and_the_message_says_what_to_do(tmp_path):
    folder = reach(tmp_path / "run", "played")
    message = refused(folder, "evaluate.max_steps=31")
    assert "evaluate.max_steps is 30 there, 31 here" in message
    assert f"move {folder / 'records'} away to play all again" in message
    (folder / "records").rename(folder / "records-30")
    assert refused(folder, "evaluate.max_steps=31") is None
