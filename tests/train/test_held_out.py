"""Held-out losses: entire trajectories are held out, and the best finite checkpoints are kept."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.training import MODEL, make_source, params_at, run, settings

from cotjax.data.held_out import Part, held_out_batches, is_held_out, split
from cotjax.data.packing import example_lengths
from cotjax.data.pipeline import example_features
from cotjax.data.tfds_agent import AgentConfig, prepare_dataset
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, Role
from cotjax.model.params import init_params
from cotjax.objectives.supervised import supervised
from cotjax.train.checks import check_counts
from cotjax.train.metrics import read_held_out, read_metrics
from cotjax.train.soundness import LARGE, is_sound
from cotjax.train.step import TrainState

HELD = {"eval_every": 2, "eval_share": 0.3}
# The train step is that of test_survival.py, compiled once for both.
SMALL = {"steps": 6, "save_every": 3, "batch": 4, "row_length": 96, "warmup": 2}
DROPPING = Dropping.of(fraction=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_source(folder)
    return folder


def dataset(data, layout):
    config = AgentConfig(
        name="t",
        sources={"train": str(data / "t.jsonl")},
        tokenizer=str(data / "tokenizer"),
        max_length=128,
        layout=layout,
    )
    return prepare_dataset(config, data / "tfds").as_data_source(split="train")


@pytest.fixture(scope="module")
def source(data):
    return dataset(data, "trajectory")


def names(part):
    return [part[index]["id"].decode() for index in range(len(part))]


# ---- what is held out


@pytest.mark.parametrize("layout", ["trajectory", "step"])
def test_the_steps_of_a_trajectory_are_on_one_side(data, layout):
    source = dataset(data, layout)
    trained, held = split(source, 0.3, seed=3)
    assert len(trained) + len(held) == len(source) == {"trajectory": 40, "step": 60}[layout]
    assert not set(names(trained)) & set(names(held))
    assert all(is_held_out(name, 0.3, 3) for name in names(held))
    for part in (trained, held):
        np.testing.assert_array_equal(
            example_lengths(part), [len(part[index]["ids"]) for index in range(len(part))]
        )


def test_holding_out_depends_on_seed_and_id_alone_and_is_nested():
    ids = [f"t{i}" for i in range(2000)]
    small, large, other = (
        {name for name in ids if is_held_out(name, share, seed)}
        for share, seed in ((0.1, 3), (0.3, 3), (0.3, 4))
    )
    assert small < large and large != other
    assert len(small) == pytest.approx(200, abs=50) and len(large) == pytest.approx(600, abs=80)
    # Not those whose actions are dropped: the two draws know nothing of each other.
    from cotjax.masking import drops_action

    both = [name for name in large if drops_action(3, name, 0.5)]
    assert len(both) == pytest.approx(len(large) / 2, abs=50)


def test_a_share_that_holds_out_none_or_all_is_refused(source):
    with pytest.raises(
        DataError, match=r"train\.eval_share 0\.0001 holds out none of the 40 trajectories"
    ):
        split(source, 0.0001, seed=3)
    with pytest.raises(DataError, match="holds out all"):
        split(Part(source, np.arange(1)), 0.9999, seed=3)


@pytest.mark.parametrize("batch", [3, 4])
def test_every_held_out_example_is_measured_once_and_loses_nothing(source, batch):
    _, held = split(source, 0.3, seed=3)
    weights, supervised = 0.0, 0.0
    for made in held_out_batches(
        held, row_length=96, batch=batch, dropping=DROPPING, rows=range(batch)
    ):
        assert made["ids"].shape == (batch, 96)
        weights += made["weights"].sum()
        assert not made["dropped"].any()
    for index in range(len(held)):
        supervised += example_features(held[index], Dropping.of())["weights"].sum()
    assert weights == supervised > 0


def test_held_out_examples_need_nothing_for_a_control_to_drop(source):
    """Nothing of them is dropped, so they need no reasoning, of which a control drops some."""
    silent = [source[index] for index in range(6)]
    silent = [
        one
        | {
            "roles": np.where(one["roles"] == Role.REASONING, Role.PROMPT, one["roles"]).astype(
                np.int8
            )
        }
        for one in silent
    ]
    dropping = Dropping.of(fraction=1.0, control="reasoning tokens")
    with pytest.raises(DataError, match="only 0 tokens"):
        example_features(silent[0], dropping)
    for made in held_out_batches(silent, row_length=96, batch=2, dropping=dropping, rows=range(2)):
        assert made["weights"].any() and not made["dropped"].any()


def test_each_process_makes_its_rows_of_the_same_batches(source):
    _, held = split(source, 0.3, seed=3)
    sizes = {"row_length": 96, "batch": 4, "dropping": DROPPING}
    whole = list(held_out_batches(held, rows=range(4), **sizes))
    halves = [list(held_out_batches(held, rows=rows, **sizes)) for rows in ((0, 1), (2, 3))]
    for made, *parts in zip(whole, *halves, strict=True):
        for name in made:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in parts]), made[name]
            )


# ---- what is measured


@pytest.fixture(scope="module")
def measured(source, tmp_path_factory):
    """The folder of a run with held-out losses, and what it said."""
    folder, said = tmp_path_factory.mktemp("measured"), []
    run(folder, source, dropping=DROPPING, say=said.append, **SMALL, **HELD)
    return folder, said


def test_held_out_rows_stand_behind_their_steps_and_apart_from_updates(measured):
    folder, said = measured
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], "held_out" in row) for row in lines] == [
        (0, True),
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (3, True),
        (4, False),
        (4, True),
        (5, False),
        (6, False),
        (6, True),
    ]
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(1, 7))
    held = read_held_out(folder / "metrics.jsonl")
    assert held[-1]["held_out"]["loss"] < held[0]["held_out"]["loss"]
    told = [line for line in said if "held-out loss" in line]
    assert len(told) == len(held) and all(
        f"{row['held_out']['loss']:.4f}" in line for row, line in zip(held, told, strict=True)
    )
    assert any(line.startswith("held out: ") and "of 40 examples" in line for line in said)


def test_a_held_out_loss_is_the_mean_over_tokens_of_the_checkpoints_parameters(measured, source):
    """Of each example by itself, unpacked, in float64."""
    _, held = split(source, 0.3, seed=3)
    (row,) = [
        row["held_out"] for row in read_held_out(measured[0] / "metrics.jsonl") if row["step"] == 3
    ]
    params = params_at(measured[0] / "checkpoints", 3)
    sums = jax.jit(lambda params, batch: supervised(MODEL, params, batch)["by_role"])
    losses, weights = np.zeros(len(Role)), np.zeros(len(Role))
    for index in range(len(held)):
        features = example_features(held[index], Dropping.of())
        padded = {
            name: np.pad(array, (0, 96 - len(array)))[None]
            for name, array in features.items()
            if name != "draws"
        }
        padded["segment_ids"] = (np.arange(96) < len(features["ids"])).astype(np.int32)[None]
        found = sums(params, padded)
        losses += np.asarray(found[0], np.float64)
        weights += np.asarray(found[1], np.float64)
    assert row["loss"] == pytest.approx(losses.sum() / weights.sum(), rel=1e-5)
    assert row["examples"] == len(held)
    assert row["supervised"] == {role.name: int(weights[role]) for role in Role if weights[role]}
    assert row["supervised"]["ACTION"] > 0, (
        "half of the turns' actions are dropped in training, none here"
    )
    assert row["loss_by_role"] == {
        role.name: pytest.approx(losses[role] / weights[role], rel=1e-5)
        for role in Role
        if weights[role]
    }


def test_held_out_trajectories_are_not_trained_on(source, tmp_path):
    """Whatever stands in them, the parameters come out the same, to the bit."""

    def spoilt(example):
        held = is_held_out(example["id"].decode(), 0.3, 3)
        return example | {"ids": example["ids"][::-1] if held else example["ids"]}

    other = [spoilt(source[index]) for index in range(len(source))]
    ends = [
        params_at(run(tmp_path / name, one, **SMALL, **HELD), 6)
        for name, one in (("a", source), ("b", other))
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    held = [read_held_out(tmp_path / name / "metrics.jsonl")[-1]["held_out"] for name in "ab"]
    assert held[0]["loss"] != held[1]["loss"] and held[0]["supervised"] == held[1]["supervised"]


def test_a_resumed_run_has_the_same_rows(measured, source, tmp_path):
    shutil.copytree(measured[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    run(tmp_path, source, dropping=DROPPING, **SMALL, **HELD)

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [
            {name: value for name, value in json.loads(line).items() if name != "time"}
            for line in lines
        ]

    assert rows(tmp_path) == rows(measured[0])
    # A held-out row that is lost is not made up.
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        "".join(
            line
            for line in file.read_text().splitlines(keepends=True)
            if '"step": 4, "held_out"' not in line
        )
    )
    with pytest.raises(
        DataError, match=r"metrics\.jsonl: does not hold the held-out loss of step 4"
    ):
        run(tmp_path, source, dropping=DROPPING, **SMALL, **HELD)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_every": 2}, r"train\.eval_share is 0, which holds nothing out"),
        ({"eval_share": 0.5}, r"train\.eval_every is 0, which measures nothing"),
        (
            {"eval_every": 2, "eval_share": 1.0},
            r"train\.eval_share is 1\.0; it must be at least 0 and less than 1",
        ),
        (
            {"keep_last": 1, "keep_best": 1},
            r"train\.keep_best is 1, but train\.eval_every is 0: .* held-out loss",
        ),
    ],
)
def test_held_out_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        check_counts(settings(**changes))


def test_the_best_by_held_out_loss_stay_also_over_a_resume(source, tmp_path):
    """The rate grows until it harms, so an early checkpoint is best; it is resumed after it."""
    changes = (
        SMALL
        | HELD
        | {
            "steps": 8,
            "save_every": 1,
            "eval_every": 8,
            "keep_last": 1,
            "keep_best": 2,
            "warmup": 7,
            "learning_rate": 0.7,
        }
    )

    def stop(step, steps, row):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source, report=stop, **changes)
    run(tmp_path, source, **changes)
    losses = {
        row["step"]: row["held_out"]["loss"] for row in read_held_out(tmp_path / "metrics.jsonl")
    }
    assert list(losses) == list(range(9))
    best = sorted(losses, key=losses.get)[:2]
    assert max(best) < 6, losses
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == sorted(
        {*best, 8}
    )
    # Those of least loss on their own training batch are others.
    trained = {row["step"]: row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")}
    assert set(sorted(trained, key=trained.get)[:2]) != set(best)


# ---- what is kept


BLOWN_UP = {"steps": 4, "save_every": 1, "clip_norm": 0.0, "schedule": "constant", "warmup": 0}


@pytest.mark.parametrize("rate", [1e30, 1e10])
@pytest.mark.parametrize("held", [{}, HELD], ids=["no held-out loss", "a held-out loss"])
def test_parameters_that_blew_up_are_never_the_checkpoint_to_go_on_from(
    source, tmp_path, rate, held
):
    """They and the loss are finite; at 1e30 their squares are not, at 1e10 the gradient is not."""
    arm = tmp_path / "arm"
    for _ in range(2):  # the second resumes from the last good one, and ends the same way
        with pytest.raises(
            DataError,
            match=r"^step 1: the parameters after .* not finite; lower .* is kept: cotjax replay",
        ) as error:
            run(arm, source, **SMALL | BLOWN_UP | {"learning_rate": rate}, **held)
        assert [path.name for path in (arm / "checkpoints").iterdir()] == ["0"]
    first = jax.tree.map(np.asarray, init_params(MODEL, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, params_at(arm / "checkpoints", 0), first)
    about = json.loads((arm / "failed" / "step-000001" / "about.json").read_text())
    assert (about["step"], about["checkpoint"]) == (1, 0) and about["error"] in str(error.value)
    assert (arm / "failed" / "step-000001" / "batch-0.npz").is_file()


def _state(changed=0.5, moment=0.0):
    params = {"a": np.full((3, 2), 0.5, np.float32), "b": np.full(4, 0.5, np.float32)}
    params["b"][2] = changed
    return TrainState(np.int32(1), params, {"mu": np.float32([0.0, moment]), "count": np.int32(7)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(value):
    def unasked(params):
        raise AssertionError("a step is not spent on parameters of the usual size")

    assert is_sound(_state(), unasked)
    assert not is_sound(_state(changed=value), unasked)
    assert not is_sound(_state(moment=value), unasked)


@pytest.mark.parametrize("value", [3 * LARGE, -1e30])
def test_large_parameters_are_judged_by_their_loss_and_gradient(value):
    state = _state(changed=value)
    assert is_sound(state, lambda params: (1.0, 2.0))
    assert not is_sound(state, lambda params: (1.0, np.nan)) and not is_sound(
        state, lambda params: (np.inf, 2.0)
    )


def test_a_held_out_loss_that_is_not_finite_stops_the_run(source, tmp_path):
    """Here for a token that the model has no row for, which stands in held-out examples alone."""

    def beyond(example):
        return example | {
            "ids": np.where(is_held_out(example["id"].decode(), 0.3, 3), 99, example["ids"])
        }

    with pytest.raises(
        DataError,
        match=r"^step 0: the held-out loss after it is nan; .* look at the held-out data",
    ):
        run(tmp_path, [beyond(source[index]) for index in range(len(source))], **SMALL, **HELD)
    assert not list((tmp_path / "checkpoints").iterdir()) and not read_held_out(
        tmp_path / "metrics.jsonl"
    )


def test_weights_that_hold_nan_are_told_before_anything_is_saved(source, tmp_path):
    def make_params(mesh):
        params = init_params(MODEL, jax.random.key(0), mesh)
        params["model"]["norm"]["weight"] = params["model"]["norm"]["weight"].at[3].set(np.nan)
        return params

    with pytest.raises(DataError, match="that training starts from are not all finite"):
        run(tmp_path, source, dropping=DROPPING, make_params=make_params, **SMALL)
    assert not list((tmp_path / "checkpoints").iterdir())
