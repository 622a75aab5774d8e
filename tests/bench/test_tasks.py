"""What each task measures, on a clock of its own."""

from types import SimpleNamespace

import pytest

from cotjax.bench import tasks
from cotjax.bench.tasks import Rollout, RolloutTask, SampleTask, TrainTask


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(tasks.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_training_task_times_every_update_and_reports_the_first_losses(clock):
    class Training(TrainTask):
        steps = 0

        def step(self):
            self.steps += 1
            clock.now += 8.0 / self.steps
            return 5.0 - self.steps

        def peak_bytes(self):
            return 7

        def describe(self):
            return {}

    task = Training()
    assert task.warm_up() == {"first_s": 8.0, "losses": (4.0, 3.0, 2.0)}
    assert task.measure(2) == {
        "seconds": [pytest.approx(2.0), pytest.approx(1.6)],
        "peak_bytes": 7,
    }


def test_a_sampling_task_times_the_first_token_apart(clock):
    class Sampling(SampleTask):
        new = 4

        def generate(self, new):
            clock.now += new
            return [[9] * new]

        def peak_bytes(self):
            return 7

        def describe(self):
            return {}

    task = Sampling()
    assert task.warm_up() == {"first_s": 4.0, "ids": [[9, 9, 9, 9]]}
    assert task.measure(2) == {
        "seconds": (4.0, 4.0),
        "first_token": (1.0, 1.0),
        "peak_bytes": 7,
    }


def test_a_rollout_task_is_timed_by_its_rollouts_with_both_actions(clock):
    class Playing(RolloutTask):
        def play(self):
            clock.now += 9.0
            return {"both": Rollout(seconds=5.0), "alone": Rollout(seconds=4.0)}

        def describe(self):
            return {"programs": 3}

    task = Playing()
    assert task.warm_up()["first_s"] == 9.0
    measured = task.measure(1)
    assert measured["seconds"] == [5.0]
    assert measured["alone"]["seconds"] == 4.0 and measured["programs"] == 3
