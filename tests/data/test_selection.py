"""Selecting steps: every step left out is counted by its reason, and a check agrees with a run."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from cotjax.cli.main import main
from cotjax.config import default_config, load_config, set_field
from cotjax.data.check import check
from cotjax.data.codec import Codec
from cotjax.data.selection import REASONS, Counts, Selection, tally
from cotjax.data.tfds_agent import AgentConfig, dataset_counts, prepare_dataset
from cotjax.data.tokens import Layout, trajectory_examples
from cotjax.data.trajectories import read_trajectories, write_trajectories
from cotjax.errors import DataError, UsageError
from cotjax.masking import Role, draw
from cotjax.study.training_data import selection_of

ROOM = "You see a cabinet 1, a cabinet 2, and a fridge 1."


def _changed(whole, number, **changes):
    steps = list(whole.steps)
    steps[number] = replace(steps[number], **changes)
    return replace(whole, steps=tuple(steps))


SILENT = {"thought": None, "provenance": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    tiny.word_codec(folder / "tokenizer", tiny.TINY_WORDS)
    three = tiny.trajectory
    played = [
        three("whole"),
        three("valid", split="valid_unseen"),
        three("lost", success=False, reward=0.0),
        three("unknown", success=None, reward=None),
        three("cool", task_type="pick_cool_then_place_in_recep"),
        _changed(three("silent"), 1, **SILENT),
        _changed(three("slip"), 1, **SILENT, trained=False),
        _changed(three("all silent"), 0, **SILENT),
        _changed(three("long thought"), 1, thought="look " * 130),
        _changed(three("long first prompt"), 0, observation=ROOM * 12),
        replace(three("long", steps=9), split="train"),
        _changed(_changed(_changed(three("mute"), 0, **SILENT), 1, **SILENT), 2, **SILENT),
    ]
    write_trajectories(folder / "t.jsonl", played)
    return folder


def _built(folder, **changes):
    config = AgentConfig(
        name="s",
        sources={"train": str(folder / "t.jsonl")},
        tokenizer=str(folder / "tokenizer"),
        **changes,
    )
    builder = prepare_dataset(config, folder / "tfds")
    return builder.as_data_source(split="train"), dataset_counts(builder)


def _steps(source):
    trained = {}
    for index in range(len(source)):
        example = source[index]
        trained.setdefault(example["id"].decode(), []).extend(example["steps"].tolist())
    return trained


def test_held_back_splits_lost_episodes_and_held_out_types_are_not_trained_on(folder):
    source, counts = _built(folder, held_out=("pick_cool_then_place_in_recep",), max_length=2000)
    assert (
        not {"valid", "lost", "cool"} & _steps(source).keys()
        and {"whole", "unknown"} < _steps(source).keys()
    )
    for reason in ("split", "lost", "task_type"):
        assert counts.left_out[reason] == {"trajectories": 1, "steps": 3}
    assert counts.unknown_outcomes == 1 and counts.splits == {"train": 11, "valid_unseen": 1}
    everything, _ = _built(folder, splits=(), won_only=False, max_length=2000)
    assert {"valid", "lost", "cool"} < _steps(everything).keys()
    assert _steps(_built(folder, splits=("valid_unseen",))[0]).keys() == {"valid"}


def test_a_step_without_a_thought_is_history_alone_or_an_action_alone_or_an_error(folder):
    skipped, counts = _built(folder, max_length=2000)
    trained = _steps(skipped)
    assert (
        trained["silent"] == [0, 2]
        and trained["slip"] == [0, 2]
        and trained["all silent"] == [1, 2]
        and "mute" not in trained
    )
    assert (
        counts.left_out["no_thought"] == {"trajectories": 3, "steps": 5}
        and counts.left_out["untrained"]["steps"] == 1
    )
    direct, counts = _built(folder, no_thought="direct", max_length=2000)
    assert (
        _steps(direct)["silent"] == [0, 1, 2]
        and _steps(direct)["slip"] == [0, 2]
        and _steps(direct)["mute"] == [0, 1, 2]
    )
    assert "no_thought" not in counts.left_out and counts.thought_provenance["no thought"] == 5
    with pytest.raises(
        DataError,
        match=r"trajectory 'silent', step 1: the step has no thought; data\.no_thought='skip'",
    ):
        _built(folder, no_thought="error", max_length=2000)
    with pytest.raises(
        UsageError, match=r"data\.no_thought is 'drop'; it must be one of skip, direct, error"
    ):
        Selection(no_thought="drop")


@pytest.mark.parametrize(
    "layout", [Layout(), Layout("step"), Layout("step", 1), Layout(past_thoughts=True)], ids=str
)
def test_an_action_alone_is_trained_behind_the_prompt_of_its_step(folder, layout):
    codec = Codec.load(folder / "tokenizer")
    silent = _changed(tiny.trajectory(steps=3), 1, **SILENT)
    examples = list(trajectory_examples(codec, silent, "cot", 1000, layout, "direct"))
    assert [int(step) for example in examples for step in example.steps] == [0, 1, 2]
    responses = [codec.decode(e.ids[e.roles > Role.OBSERVATION]) for e in examples]
    assert "".join(responses).count("<think>") == 2 and "".join(responses).count("<action>") == 3


def test_a_file_of_which_nothing_is_left_says_why_and_which_splits_there_are(folder):
    with pytest.raises(
        DataError,
        match=r"t\.jsonl: nothing to train on; .* of another split "
        r".*'train' \(11\), 'valid_unseen' \(1\)",
    ):
        _built(folder, splits=("training",))
    with pytest.raises(
        DataError, match=r"nothing to train on; .* too long with their prompt for data\.max_length"
    ):
        _built(folder, max_length=20)


def test_a_first_prompt_that_is_too_long_is_left_out_and_counted(folder):
    source, counts = _built(folder, max_length=170)
    trained = _steps(source)
    assert "long first prompt" not in trained and "whole" in trained
    long = [
        trajectory
        for trajectory in read_trajectories(folder / "t.jsonl")
        if trajectory.split == "train" and trajectory.success is not False
    ]
    missing = {one.id: len(one.steps) - len(trained.get(one.id, [])) for one in long}
    assert sum(missing.values()) == sum(
        affected["steps"]
        for reason, affected in counts.left_out.items()
        if reason not in ("split", "lost")
    )
    assert missing["long first prompt"] == 3


@pytest.mark.parametrize("layout", [Layout(), Layout("step"), Layout("step", 2)], ids=str)
def test_a_thought_that_is_too_long_leaves_out_its_own_step_alone(folder, layout):
    """Later prompts do not show it."""
    codec = Codec.load(folder / "tokenizer")
    whole = tiny.trajectory(steps=5)
    long = _changed(whole, 2, thought="look " * 300)
    examples = list(trajectory_examples(codec, long, "cot", 290, layout))
    assert sorted(int(step) for example in examples for step in example.steps) == [0, 1, 3, 4]
    skipped = list(
        trajectory_examples(codec, _changed(whole, 2, trained=False), "cot", 290, layout)
    )
    assert [e.ids.tolist() for e in examples] == [e.ids.tolist() for e in skipped]


@pytest.mark.parametrize(
    "layout", [Layout(), Layout("step"), Layout("step", 1), Layout(past_thoughts=True)], ids=str
)
@pytest.mark.parametrize("form", ["cot", "direct"])
def test_a_step_fits_up_to_the_last_token(folder, layout, form):
    codec = Codec.load(folder / "tokenizer")
    one = tiny.trajectory(steps=2)
    *_, last = trajectory_examples(codec, one, form, 10_000, layout)
    needed = len(last.ids)
    if not layout.past_thoughts and form == "cot" and layout.name == "trajectory":
        needed = (
            int(last.positions.max()) + 1
        )  # in a tree of its own the last response has its prompt alone before it
    exact = [
        int(step) for e in trajectory_examples(codec, one, form, needed, layout) for step in e.steps
    ]
    short = [
        int(step)
        for e in trajectory_examples(codec, one, form, needed - 1, layout)
        for step in e.steps
    ]
    assert exact == [0, 1] and short == [0]


RUNS = {
    "as it is": {},
    "short": {"max_length": 170},
    "direct": {"direct_share": 1.0, "max_length": 200},
    "mixed forms": {"direct_share": 0.5, "no_thought": "direct", "max_length": 300},
    "steps": {"layout": "step", "max_length": 120, "history": 1},
    "thoughts": {"past_thoughts": True, "won_only": False, "max_length": 180},
    "splits": {"splits": ("train", "valid_unseen"), "held_out": ("pick_and_place_simple",)},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_check_says_what_a_run_will_train_on(folder, changes):
    source, counts = _built(folder, **changes)
    contents = check(
        folder / "t.jsonl", codec=Codec.load(folder / "tokenizer"), selection=Selection(**changes)
    )
    assert not contents.bad and contents.trained.as_dict() == counts.as_dict()
    # And the counts are those of what is stored.
    stored = [source[index] for index in range(len(source))]
    assert counts.examples == len(stored) and counts.tokens == sum(
        len(one["ids"]) for one in stored
    )
    assert contents.tokens == Counter(len(one["ids"]) for one in stored)
    trained = {(one["id"], step) for one in stored for step in one["steps"].tolist()}
    assert counts.trained_steps == len(trained) == sum(len(one["steps"]) for one in stored)
    assert counts.trained_trajectories == len({one["id"] for one in stored})
    assert (
        counts.trained_steps + sum(one["steps"] for one in counts.left_out.values())
        == counts.steps
        == 42
    )
    thoughts = sum(one["roles"].tolist().count(Role.REASONING) > 0 for one in stored)
    assert (counts.thought_provenance.keys() <= {"no thought"}) == (not thoughts)
    assert (
        sum(counts.thought_provenance.values()) == counts.trained_steps
        and counts.left_out.keys() <= REASONS.keys()
    )
    assert Counts.of(json.loads(json.dumps(counts.as_dict()))) == counts


def test_the_steps_of_an_example_are_those_of_its_responses_in_order(folder):
    for changes in RUNS.values():
        source, _ = _built(folder, **changes)
        for index in range(len(source)):
            example = source[index]
            ends = np.flatnonzero(example["roles"] == Role.END)
            assert len(ends) == len(example["steps"]) and (np.diff(example["steps"]) > 0).all()


def _config(tmp_path, folder, **data):
    lines = "".join(f"    config.data.{name} = {value!r}\n" for name, value in data.items())
    file = tmp_path / "mine.py"
    file.write_text(
        "from cotjax.config import default_config\n\n\n"
        "def get_config():\n    config = default_config()\n"
        f"    config.model.tokenizer = {str(folder / 'tokenizer')!r}\n{lines}    return config\n"
    )
    return file


def test_the_command_checks_with_the_runs_config(folder, tmp_path, capsys):
    config = _config(
        tmp_path, folder, trajectories=str(folder / "t.jsonl"), max_length=170, no_thought="skip"
    )
    assert main(["data", "check", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    # The config's OOD task types are held out of a user's file too.
    selection = selection_of(load_config(config))
    assert "pick_cool_then_place_in_recep" in selection.held_out and selection.task_types is None
    _, counts = _built(folder, **vars(selection))
    assert "\n".join(f"  {line}" for line in counts.lines()) in out
    capsys.readouterr()
    assert (
        main(
            [
                "data",
                "check",
                str(folder / "t.jsonl"),
                "--config",
                str(config),
                "--config.data.splits=test",
            ]
        )
        == 3
    )
    captured = capsys.readouterr()
    assert "nothing to train on" in captured.err and captured.err.count("\n") == 1
    assert main(["data", "check", "--config", str(config), "--config.data.no_thought=error"]) == 3
    assert (
        "t.jsonl:6: trajectory 'silent', step 1: the step has no thought" in capsys.readouterr().out
    )


def test_a_check_without_a_config_may_name_single_settings(folder, capsys):
    arguments = ["data", "check", str(folder / "t.jsonl")]
    arguments += ["--tokenizer", str(folder / "tokenizer"), "--max-length", "170"]
    assert main([*arguments, "--config.data.won_only=False"]) == 0
    out = capsys.readouterr().out
    assert (
        "a lost episode" not in out
        and "left out: 3 steps of another split than data.splits, in 1 trajectory" in out
    )
    assert main(["data", "check"]) == 2 and "give the FILE to check" in capsys.readouterr().err


def test_a_tokenizer_made_from_the_data_is_checked_with(folder, capsys):
    assert (
        main(
            [
                "data",
                "check",
                str(folder / "t.jsonl"),
                "--config.model.base=random",
                "--config.prompt.system=be kind",
            ]
        )
        == 0
    )
    assert "A run trains on" in capsys.readouterr().out


def test_a_check_counts_an_episode_as_too_long_only_beyond_the_limit(folder):
    codec = Codec.load(folder / "tokenizer")
    contents = check(folder / "t.jsonl", codec=codec, max_length=10_000)
    most = max(contents.tokens)
    assert check(folder / "t.jsonl", codec=codec, max_length=most).long == 0
    assert (
        check(folder / "t.jsonl", codec=codec, max_length=most - 1).long
        == contents.tokens[most]
        > 0
    )


@pytest.mark.parametrize("max_length", [60, 70, 103, 122, 169, 400])
def test_a_check_without_a_config_counts_the_steps_that_do_not_fit_as_a_run_does(
    folder, max_length
):
    """And it encodes every step, with a thought or without."""
    codec = Codec.load(folder / "tokenizer")
    contents = check(folder / "t.jsonl", codec=codec, max_length=max_length)
    everything = Selection(splits=(), won_only=False, no_thought="direct", max_length=max_length)
    counts = check(folder / "t.jsonl", codec=codec, selection=everything).trained
    assert (
        contents.lost == counts.left_out.get("too_long", {"steps": 0})["steps"]
        and sum(contents.tokens.values()) == 12
    )


def test_with_a_short_history_an_observation_that_is_too_long_costs_the_steps_that_see_it_alone(
    folder,
):
    codec = Codec.load(folder / "tokenizer")
    long = _changed(tiny.trajectory(steps=6), 2, observation=ROOM * 20)
    examples = list(trajectory_examples(codec, long, "cot", 200, Layout("step", 1)))
    assert [example.first_step for example in examples] == [0, 1, 4, 5]


def test_the_direct_form_is_drawn_from_the_trajectorys_name(folder):
    source, _ = _built(
        folder, direct_share=0.5, splits=(), won_only=False, max_length=2000, no_thought="direct"
    )
    seen = {
        source[index]["id"].decode(): not source[index]["branches"].any()
        for index in range(len(source))
    }
    assert (
        seen == {name: draw(0, f"form/{name}") < 0.5 for name in seen}
        and len(set(seen.values())) == 2
    )


def test_outcomes_that_nobody_knows_are_counted_where_they_are_trained_on(folder):
    codec, counts, selection = Codec.load(folder / "tokenizer"), Counts(), Selection()
    unknown = tiny.trajectory("u", success=None, reward=None)
    for one in (unknown, replace(unknown, id="v", split="valid"), tiny.trajectory("w")):
        selection.examples(codec, one, counts)
    assert counts.unknown_outcomes == 1 and "trained on with unknown outcome: 1 trajectory" in list(
        counts.lines()
    )


def test_a_field_that_is_another_in_every_line_is_not_held():
    counts = Counter()
    for number in range(1500):
        tally(counts, f"split {number}")
    tally(counts, "split 3")
    assert len(counts) == 1001 and counts["other values"] == 500 and counts["split 3"] == 2


def test_no_split_named_is_every_split():
    config = default_config()
    set_field(config, "data.splits=")
    assert selection_of(config).splits == ()
    with pytest.raises(UsageError, match=r"data\.max_length is 0"):
        Selection(max_length=0)


def test_what_is_collected_is_trained_on_whole():
    """The explorer's lost episodes are the base's data; the demo's expert loses none."""
    base, demo = (selection_of(load_config(f"configs/{name}.py")) for name in ("base", "demo"))
    assert not base.won_only and set(base.task_types) == set(default_config().task_types.collect)
    assert demo == Selection(task_types=tuple(default_config().task_types.in_domain))


def test_a_share_that_cannot_be_is_refused():
    for share in (-0.5, 1.5, float("nan")):
        with pytest.raises(UsageError, match=r"data\.direct_share"):
            Selection(direct_share=share)
