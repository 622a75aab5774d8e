"""A probe's rows: kept one by one, finished in the same bytes, bound to what they are of."""

from collections.abc import Mapping
from typing import ClassVar

import pytest
from helpers.planted import write_planted

from cotjax.config import default_config
from cotjax.diagnostics import probes as rows
from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.metrics import points
from cotjax.diagnostics.probe_rows import ProbeRow, read_probe
from cotjax.errors import InternalError
from cotjax.probes.measuring import measure, probe_path
from cotjax.probes.probe import Checkpoint, drawn, states_of


class Letters(ProbeRow):
    metrics: ClassVar = {
        "letters": Metric("letters of the observation", "letters", "mean", upper=1000)
    }

    letters: int

    def counts(self) -> Mapping[str, float]:
        return {"letters": self.letters}


class LettersProbe:
    """Counts the letters of observations; breaks after so many states."""

    name, title = "letters", "counting letters"

    def __init__(self, breaks_after=None, factor=1, skips=False):
        self.breaks_after, self.factor, self.skips, self.measured = breaks_after, factor, skips, 0

    def check(self, config):
        pass

    def settings(self, config):
        return {"factor": self.factor}

    def states(self, at):
        return drawn(states_of(at.records("reference")), at.config)

    def measure(self, states, at):
        for number, state in enumerate(reversed(states)):
            if number == self.breaks_after:
                raise KeyboardInterrupt
            if self.skips and number == 2:
                continue
            self.measured += 1
            letters = self.factor * len(state.turn.observation)
            yield Letters(**state.place, letters=letters)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PROBE_ROWS", {"letters": Letters})
    monkeypatch.setattr("cotjax.probes.measuring.PROBE_ROWS", {"letters": Letters})
    return write_planted(tmp_path / "run", games=4, states=3, played=False)


def checkpoint(run, said, digest="sha", states=7):
    config = default_config()
    config.probes.states = states
    files = sorted((run / "records").glob("*/60/*/*.json"))
    arm = files[0].parts[-4]
    return Checkpoint(
        arm=arm,
        step=60,
        digest=digest,
        config=config,
        world=None,
        games={},
        codec=None,
        files=[file for file in files if file.parts[-4] == arm],
        load_policy=None,
        load_weights=None,
        workers=0,
        say=said.append,
    )


def test_an_interrupted_measurement_ends_in_the_same_bytes(run):
    at = checkpoint(run, said := [])
    path = probe_path(run, "letters", at.arm, 60)
    assert measure(LettersProbe(), at, run, "games") == 7
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        measure(LettersProbe(breaks_after=3), at, run, "games")
    assert not path.exists(), "an unfinished file is not reported"
    part = path.with_suffix(".part")
    part.write_bytes(part.read_bytes()[:-9])  # as a process that was killed leaves it
    again = LettersProbe()
    measure(again, at, run, "games")
    assert (path.read_bytes(), again.measured, said) == (whole, 5, [])
    assert not part.exists()
    done = LettersProbe()
    measure(done, at, run, "games")
    assert done.measured == 0


@pytest.mark.parametrize("changed", [{"digest": "other weights"}, {"factor": 2}])
def test_rows_of_other_weights_or_settings_are_set_aside(run, changed):
    factor = changed.pop("factor", 1)
    at = checkpoint(run, [])
    measure(LettersProbe(), at, run, "games")
    now = checkpoint(run, said := [], **changed)
    measure(probe := LettersProbe(factor=factor), now, run, "games")
    assert probe.measured == 7
    assert "set aside" in said[0]
    path = probe_path(run, "letters", now.arm, 60)
    assert path.with_name("60.jsonl.damaged-1").exists()


def test_a_state_without_a_row_is_no_finished_measurement(run):
    with pytest.raises(InternalError, match="no row"):
        measure(LettersProbe(skips=True), checkpoint(run, []), run, "games")


def test_rows_are_counted_at_their_point(run):
    at = checkpoint(run, [])
    measure(LettersProbe(), at, run, "games")
    _, found = read_probe(probe_path(run, "letters", at.arm, 60), Letters)
    measured = list(rows.count_probes(run))
    assert sum(each.counts["letters"] for each in measured) == sum(row.letters for row in found)
    assert points([], measured) == {}, "states without episodes have no point"


def test_a_sample_of_states_is_the_same_for_all_checkpoints_and_nested_in_no_order(run):
    at = checkpoint(run, [])
    states = states_of(at.records("reference"))
    assert len(states) == 12
    first, again = (
        [state.key for state in drawn(each, at.config)] for each in (states, states[::-1])
    )
    assert first == again
    assert len(set(first)) == 7
    at.config.probes.states = 0
    assert len(drawn(states, at.config)) == 12
