"""Where a step's time goes: from a real trace of a small step."""

import io
from dataclasses import asdict

import numpy as np
import pytest
from helpers import tiny
from rich.console import Console

from cotjax.bench import train
from cotjax.bench.jobs import ROWS, TrainJob, rows_of
from cotjax.bench.profile import _scope, profile
from cotjax.errors import UsageError
from cotjax.model.attention import visible


def test_every_part_of_a_step_has_its_time():
    said = io.StringIO()
    model = asdict(tiny.model_config(layers=2, width=64))
    job = TrainJob(model=model, batch=1, length=64, remat="block", scan=True, rows="trees")
    seconds = profile(job, Console(file=said, width=100, highlight=False))
    for scope in ("attention", "mlp", "loss", "optimizer"):
        assert seconds[scope, "forward"] > 0 and scope in said.getvalue()
    assert seconds["mlp", "backward"] > 0 and seconds["mlp", "again"] > 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jit(train_step)/jvp()/while/body/closed_call/mlp/dot_general", ("mlp", "forward")),
        ("jit(train_step)/transpose(jvp())/while/body/attention/norm/mul", ("norm", "backward")),
        (
            "jit(train_step)/transpose(jvp())/while/body/checkpoint/rematted_computation/mlp/dot",
            ("mlp", "again"),
        ),
        ("jit(train_step)/transpose(jvp(loss))/while/body/dot_general", ("loss", "backward")),
        ("jit(train_step)/optimizer/transpose", ("optimizer", "forward")),
        ("jit(train_step)/add", ("other", "forward")),
    ],
)
def test_an_instruction_belongs_to_its_innermost_scope(path, expected):
    assert _scope(path) == expected


@pytest.mark.parametrize("kind", ROWS)
def test_positions_of_rows_count_what_a_token_sees(kind):
    segments, branches, positions = rows_of(kind, 2, 1024)
    seen = np.asarray(visible(segments, branches, segments, branches)) & np.tri(1024, dtype=bool)
    np.testing.assert_array_equal(seen.sum(axis=2), positions + 1)
    assert len(np.unique(segments)) == (1 if kind == "plain" else 4)
    assert (branches > 0).mean() == (0.5 if kind == "trees" else 0)


def test_baselines_have_plain_rows():
    settings = train.Settings(rows="trees", peers=("eager",))
    with pytest.raises(UsageError, match="--rows trees"):
        train.benchmark(settings)
