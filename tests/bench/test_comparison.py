"""How sides of a comparison are started, take turns, and are set in relation."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from cotjax.bench import comparison
from cotjax.bench.comparison import check_counts, compare, ratios
from cotjax.bench.jobs import RolloutJob, SampleJob, TrainJob, from_line, to_line
from cotjax.errors import CotjaxError, UsageError

JOBS = (
    TrainJob(side="eager", model={"width": 8}, batch=4, length=64, mesh=(1, 2, 1)),
    SampleJob(model={"width": 8}, slots=2, prompt=12, new=4, weights="w", cpu_devices=2),
    RolloutJob(model="m", template="chatml", games=({"id": "g"},), folder="f", slots=2),
)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_a_job_survives_the_way_to_its_worker(job):
    line = to_line(job)
    assert "\n" not in line
    assert from_line(line) == job


def test_ratios_compare_medians_rounds_and_fastest_repetitions():
    ours = SimpleNamespace(seconds=((1.0, 2.0, 9.0), (2.0, 2.0, 2.0)))
    other = SimpleNamespace(seconds=((4.0, 5.0, 6.0), (6.0, 8.0, 8.0)))
    assert ratios(ours, other) == {
        "ratio": 6.0 / 2.0,
        "ratio_low": 5.0 / 2.0,
        "ratio_high": 8.0 / 2.0,
        "best_ratio": 4.0 / 1.0,
    }


def test_counts_below_their_least_are_refused():
    check_counts({"slots": 1, "new": 2}, least={"new": 2})
    with pytest.raises(UsageError, match="--new is 1; it must be at least 2"):
        check_counts({"slots": 1, "new": 1}, least={"new": 2})


@pytest.fixture
def events(monkeypatch):
    """What the sides do, in order; no processes are started."""
    events = []

    class FakeSide:
        def __init__(self, job, folder):
            self.name, self.seconds = job.name, ()
            events.append(f"start {job.side}")

        def measure(self, count):
            self.seconds += ((1.5,) * count,)
            events.append(f"{self.name} {count}")

        def close(self):
            events.append(f"close {self.name}")

    monkeypatch.setattr(comparison, "Side", FakeSide)
    return events


def run_comparison(events, check, tmp_path, console=None):
    ours = JOBS[1]
    compare(
        [ours, replace(ours, side="static")],
        tmp_path,
        console or Console(quiet=True),
        describe=lambda side: side.name,
        check=check,
        rounds=2,
        count=3,
        after_round=lambda number, sides: events.append(f"round {number}"),
    )


def test_sides_take_turns(events, tmp_path):
    run_comparison(events, lambda ours, other: events.append(f"check {other.name}"), tmp_path)
    turns = ["cotjax 3", "transformers, static 3"]
    assert events == [
        "start cotjax", "check cotjax", "start static", "check transformers, static",
        *turns, "round 1", *turns, "round 2", "close cotjax", "close transformers, static",
    ]  # fmt: skip


def test_a_round_is_said_when_it_has_ended(events, tmp_path):
    said = io.StringIO()
    run_comparison(events, lambda ours, other: None, tmp_path, Console(file=said, width=200))
    rounds = [line for line in said.getvalue().splitlines() if line.startswith("round")]
    assert rounds == [f"round {n}: cotjax 1.5 s, transformers, static 1.5 s" for n in (1, 2)]


def test_sides_that_disagree_are_closed_without_a_measurement(events, tmp_path):
    def check(ours, other):
        if other is not ours:
            raise CotjaxError("they differ")

    with pytest.raises(CotjaxError, match="they differ"):
        run_comparison(events, check, tmp_path)
    assert events == ["start cotjax", "start static", "close cotjax", "close transformers, static"]
