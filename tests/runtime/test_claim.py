"""A run is bound to its settings and content, except those that change no result."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.training import MODEL, assert_same, make_source, params_at, rows, run

from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping
from cotjax.model.params import init_params
from cotjax.runtime.binding import difference
from cotjax.runtime.claim import begun, planned_steps
from cotjax.runtime.older import LATER
from cotjax.train import fingerprints
from cotjax.train.fingerprints import Fingerprints
from cotjax.train.metrics import read_metrics

TESTS = Path(__file__).parents[1]
CHANGES = {
    "steps": 4,
    "save_every": 2,
    "row_length": 96,
    "batch": 4,
    "warmup": 1,
    "schedule": "constant",
}
MADE_FROM = {
    "data": {"file": "t.jsonl", "sha256": "d" * 64, "examples": "0123456789ab"},
    "tokenizer": {"file": "m/tokenizer.json", "sha256": "e" * 64},
    "base": {"file": "m", "sha256": "f" * 64},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The folder of a run of 4 updates."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, source, made_from=MADE_FROM, **CHANGES)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def without(part, **changes):
    return MADE_FROM | {part: MADE_FROM[part] | changes}


@pytest.mark.parametrize(
    ("made_from", "words"),
    [
        (
            without("data", sha256="a" * 64, examples="fedcba987654"),
            "the content of t.jsonl changed .sha256 dddddddddddd… there, aaaa",
        ),
        (
            without("tokenizer", sha256="a" * 64),
            "the tokenizer: the content of m/tokenizer.json changed",
        ),
        (without("base", sha256="a" * 64), "the base model: the content of m changed"),
        (
            without("data", examples="fedcba987654"),
            "t.jsonl is unchanged, but gives other examples",
        ),
        (
            MADE_FROM | {"base": {"recipe": "random", "recall_steps": 500}},
            "it was m, and is recipe random, recall_steps 500 now",
        ),
    ],
)
def test_other_content_is_refused_and_the_file_named(copy, source, made_from, words):
    shutil.rmtree(copy / "checkpoints" / "4")
    with pytest.raises(
        UsageError,
        match=f"{words}.*restore what it was begun with, or choose another folder with --out",
    ):
        run(copy, source, made_from=made_from, **CHANGES)
    assert len(rows(copy)) == 4 and not (copy / "checkpoints" / "4").exists()


def test_content_is_that_of_the_checkpoint_too(copy, source):
    """Settings that are lost, or edited, don't let another run in."""
    (copy / "settings.json").unlink()
    with pytest.raises(UsageError, match=r"the content of t\.jsonl changed"):
        run(copy, source, made_from=without("data", sha256="a" * 64), **CHANGES)
    with pytest.raises(UsageError, match=r"train\.b2 is"):
        run(copy, source, made_from=MADE_FROM, **CHANGES | {"b2": 0.5})


def test_every_checkpoint_holds_the_fingerprints(whole):
    for step in (0, 2, 4):
        kept = json.loads(
            next(
                path for path in (whole / "checkpoints" / str(step) / "run").rglob("metadata")
            ).read_text()
        )
        assert kept["made_from"] == MADE_FROM
    assert json.loads((whole / "settings.json").read_text())["made_from"] == MADE_FROM


def test_where_the_files_lie_may_change(copy, source):
    run(copy, source, made_from=without("data", file="moved/t.jsonl"), **CHANGES)


def test_a_run_without_fingerprints_goes_on_with_a_sentence(copy, whole, source):
    """As runs of earlier versions, whose settings know neither them nor every field."""
    file = copy / "settings.json"
    old = json.loads(file.read_text())
    for name in ("made_from", "saves"):
        del old[name]
    del old["train"]["schedule_steps"]
    file.write_text(json.dumps(old))
    shutil.rmtree(copy / "checkpoints" / "4")
    warned = []
    run(copy, source, made_from=MADE_FROM, warn=warned.append, **CHANGES)
    assert (
        len(warned) == 1 and "no fingerprint of its data, tokenizer and base was kept" in warned[0]
    )
    assert json.loads(file.read_text())["made_from"] == MADE_FROM
    assert_same(copy, whole, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropping": Dropping.of(fraction=0.5)}, r"masking\.fraction is 0\.0 there, 0\.5 here"),
        ({"batch": 8}, r"train\.batch is 4 there, 8 here"),
        ({"steps": 3}, r"trained to step 4, and train\.steps is 3"),
        ({"schedule": "cosine"}, r"train\.schedule is 'constant' there, 'cosine' here"),
    ],
)
def test_what_counts_may_not_change(copy, source, changes, words):
    with pytest.raises(UsageError, match=words):
        run(copy, source, **CHANGES | changes)


def test_what_changes_no_result_may_change(copy, whole, source):
    shutil.rmtree(copy / "checkpoints" / "4")
    free = {
        "remat": "none",
        "accumulate": 2,
        "scan_layers": True,
        "attention": "xla",
        "keep_last": 1,
    }
    run(copy, source, made_from=MADE_FROM, **CHANGES | free)
    losses = [[row["loss"] for row in rows(folder)] for folder in (copy, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        *(params_at(each / "checkpoints", 4) for each in (copy, whole)),
    )


ON_A_MESH = """
import sys
sys.path.insert(0, sys.argv[4])
import jax
jax.config.update("jax_num_cpu_devices", 4)
import json
from pathlib import Path
from helpers.training import make_source, run
folder, made_from, changes = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
mesh = {"data": 2, "fsdp": 2, "tensor": 1}
run(folder, make_source(folder / "data"), made_from=made_from, mesh_shape=mesh, **changes)
"""


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_losses_on_another_mesh(copy, whole):
    shutil.rmtree(copy / "checkpoints" / "4")
    arguments = [str(copy), json.dumps(MADE_FROM), json.dumps(CHANGES), str(TESTS)]
    command = [sys.executable, "-c", ON_A_MESH, *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)
    np.testing.assert_allclose(
        *([row["loss"] for row in rows(folder)] for folder in (copy, whole)), rtol=2e-5
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
        *(params_at(each / "checkpoints", 4) for each in (copy, whole)),
    )


def test_a_finished_run_of_constant_rate_is_prolonged_to_the_same_bits(copy, source, tmp_path):
    run(copy, source, made_from=MADE_FROM, **CHANGES | {"steps": 6})
    run(tmp_path / "long", source, made_from=MADE_FROM, **CHANGES | {"steps": 6})
    assert_same(copy, tmp_path / "long", 6)


def test_a_schedule_that_ends_is_prolonged_where_its_end_stays(source, tmp_path):
    ends = CHANGES | {"schedule": "cosine"}
    run(tmp_path / "short", source, **ends)
    with pytest.raises(
        UsageError,
        match=r"train\.steps is 4 there, 6 here, where the cosine schedule ends.*schedule_steps=4",
    ):
        run(tmp_path / "short", source, **ends | {"steps": 6})
    longer = ends | {"steps": 6, "schedule_steps": 4}
    run(tmp_path / "short", source, **longer)
    run(tmp_path / "long", source, **longer)
    assert_same(tmp_path / "short", tmp_path / "long", 6)
    assert [round(row["learning_rate"] / 3e-3, 6) for row in rows(tmp_path / "long")][-2:] == [
        0.1,
        0.1,
    ]


def test_checkpoints_stay_where_their_interval_changes(copy, source):
    longer = CHANGES | {"steps": 9, "save_every": 3}
    run(copy, source, made_from=MADE_FROM, **longer)
    assert (
        sorted(int(path.name) for path in (copy / "checkpoints").iterdir())
        == planned_steps(copy)
        == [0, 2, 4, 6, 9]
    )
    run(copy, source, made_from=MADE_FROM, **longer)
    assert planned_steps(copy) == [0, 2, 4, 6, 9]


def test_held_out_losses_go_on_where_the_plan_changes(source, tmp_path):
    held = CHANGES | {"eval_share": 0.2, "eval_every": 2}
    run(tmp_path, source, **held | {"keep_last": 1, "keep_best": 1})
    run(tmp_path, source, **held | {"steps": 9, "save_every": 3, "keep_last": 2})
    run(tmp_path, source, **held | {"steps": 9, "save_every": 4, "keep_last": 2})
    assert [
        row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row
    ] == list(range(1, 10))


def test_a_start_that_failed_binds_nothing(source, tmp_path):
    """It fails in the first update, after the checkpoint of its start; another base replaces it."""

    def broken(mesh):
        return jax.tree.map(lambda x: x * 1e30, init_params(MODEL, jax.random.key(0), mesh))

    with pytest.raises(DataError, match=r"step 1: the (loss|gradient's norm) is nan"):
        run(
            tmp_path,
            source,
            dropping=Dropping.of(fraction=0.5),
            make_params=broken,
            made_from=MADE_FROM,
            **CHANGES,
        )
    assert not begun(tmp_path) and (tmp_path / "checkpoints" / "0").exists()
    other = replace(MODEL, feed_forward=32)
    run(
        tmp_path,
        source,
        model=other,
        make_params=lambda mesh: init_params(other, jax.random.key(0), mesh),
        made_from=without("base", sha256="a" * 64),
        seed=4,
        **CHANGES | {"steps": 1, "warmup": 0},
    )
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    start = params_at(tmp_path / "checkpoints", 0, other)
    jax.tree.map(
        np.testing.assert_array_equal,
        start,
        jax.tree.map(np.asarray, init_params(other, jax.random.key(0))),
    )


def test_a_base_that_cannot_be_read_leaves_no_trace(source, tmp_path):
    def fails(mesh):
        raise UsageError("the base is broken")

    with pytest.raises(UsageError, match="the base is broken"):
        run(tmp_path / "run", source, make_params=fails, **CHANGES)
    assert not (tmp_path / "run").exists()


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SETTLED_S", 0.0)
    file, memory = tmp_path / "big.safetensors", tmp_path / "fingerprints.json"
    file.write_bytes(b"weights")
    first = Fingerprints(memory)
    told = first.of(file)
    first.keep()
    known = json.loads(memory.read_text())
    known[str(file.resolve())][3] = "remembered"
    memory.write_text(json.dumps(known))
    assert Fingerprints(memory).of(file) == "remembered", "not read again"
    file.write_bytes(b"Weights")
    again = Fingerprints(memory)
    assert again.of(file) not in (told, "remembered")
    again.keep()
    status = file.stat()
    file.write_bytes(b"weights")
    os.utime(
        file, ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # as a copy that keeps the times would have it
    assert Fingerprints(memory).of(file) == told
    memory.write_text("[")
    assert Fingerprints(memory).of(file) == told, "a spoilt memory is none"


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    """It may change again, to the same size, before the clock of the file system moves on."""
    file = tmp_path / "t.jsonl"
    file.write_text("one")
    prints = Fingerprints(tmp_path / "fingerprints.json")
    prints.of(file)
    prints.keep()
    assert json.loads((tmp_path / "fingerprints.json").read_text()) == {}


def test_a_run_of_before_a_field_came_is_bound_to_its_default():
    train = {"steps": 4, "schedule": "constant"}
    older = {"train": train, "rl": {"kl": 0.01}}
    fields = {name.removeprefix("rl."): value for name, value in LATER.items()}
    assert difference(older, {"train": train, "rl": {"kl": 0.01, **fields}}) is None
    changed = {"kl": 0.01, **fields, "off_policy_steps": 1}
    said = difference(older, {"train": train, "rl": changed})
    assert said == "rl.off_policy_steps is 0 there, 1 here"
