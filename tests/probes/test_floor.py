"""D2's floor: what two samples of one mode say, and what lies beyond it."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import kitchen
from helpers.planted import write_planted
from helpers.probing import checkpoint_of

from cotjax.config import default_config
from cotjax.diagnostics.floor import FloorRow
from cotjax.diagnostics.metrics import Point
from cotjax.diagnostics.probe_rows import Measured, read_probe
from cotjax.errors import UsageError
from cotjax.probes.floor import FloorProbe
from cotjax.probes.measuring import measure, probe_path

ACTIONS = ("look", "open cabinet 1", "open cabinet 2", "close fridge 1")
METRICS = ("d2_floor_cot", "d2_floor_prompt", "d2_sampled", "revision_excess")


def row(cot, prompt):
    place = {"driver": "reference", "game": "g", "domain": "ood", "sample": 0, "turn": 0}
    return FloorRow(**place, cot=cot, prompt=prompt)


@pytest.mark.parametrize(
    ("cot", "prompt", "expected"),
    [
        ("aa", "aa", (1, 1, 1, 0)),
        ("aa", "bb", (1, 1, 0, 1)),
        ("ab", "ab", (0, 0, 0.5, -0.5)),
        ("ab", "cc", (0, 1, 0, 0.5)),
        ("aab", "ab", (1 / 3, 0, 0.5, -1 / 3)),
    ],
)
def test_pairs_of_one_kind_are_the_floor_and_mixed_pairs_are_d2(cot, prompt, expected):
    counts = row(tuple(cot), tuple(prompt)).counts()
    assert [counts[name] for name in METRICS] == pytest.approx(expected)
    assert counts["d2_floor_not_comparable"] == 0


def test_a_state_counts_where_each_kind_has_two_valid_responses():
    lacking = {"d2_floor_not_comparable": 1}
    assert row(("a", None), ("a", "a")).counts() == lacking
    assert row(("a", "a"), (None, None)).counts() == lacking
    counts = row(("a", None, "a"), ("a", "b", None)).counts()
    assert [counts[name] for name in METRICS] == [1, 0, 0.5, 0]


class Draws:
    """A policy whose responses have actions of given probabilities, by the seed alone."""

    slots, max_length = 5, 10_000

    def __init__(self, cot, prompt, invalid=0.0):
        self.shares = {"cot": cot, "prompt": prompt}
        self.invalid, self.prompts, self.seeds = invalid, {}, []

    def reset(self, slots):
        self.prompts = {slot: [] for slot in slots}

    def extend(self, pieces):
        self.prompts |= {slot: list(ids) for slot, ids in pieces.items()}

    def prompt(self, slot):
        return self.prompts[slot]

    def sample(self, prefixes, *, max_new, seeds, temperature, **how):
        self.temperature = temperature
        return {slot: self._draw(prefixes[slot], seeds[slot]) for slot in prefixes}

    def _draw(self, prefix, seed):
        self.seeds.append(seed)
        rng = np.random.default_rng(seed)
        kind = "prompt" if prefix else "cot"
        action = ACTIONS[rng.choice(len(ACTIONS), p=self.shares[kind])]
        text = (
            f"{action} </action>" if prefix else f"<think> so </think><action> {action} </action>"
        )
        if rng.random() < self.invalid:
            text = "nothing"
        ids = kitchen.codec().encode(text)
        return SimpleNamespace(ids=ids, logprobs=None, new_tokens=len(ids), stopped=True)


P, Q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.1, 0.2, 0.6])


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted"), games=40, states=6, played=False)


def measured(run, policy, **settings):
    """Measure all states of a planted run; return the point."""
    at = checkpoint_of(run, policy, kitchen.codec())
    at.config.probes.states = 0
    at.config.probes.floor.update(settings)
    point = Point()
    for each in FloorProbe().measure(FloorProbe().states(at), at):
        heading = SimpleNamespace(member=at.arm, checkpoint=at.step)
        point.add_state(Measured.of(heading, each))
    return point


@pytest.mark.parametrize(("p", "q"), [(P, P), (P, Q), (Q, P)], ids=["equal", "differ", "swapped"])
@pytest.mark.parametrize(("samples", "invalid"), [(2, 0.0), (3, 0.3)])
def test_a_planted_floor_and_excess_are_recovered(states, p, q, samples, invalid):
    """An invalid response says nothing: the shares are those of the valid ones."""
    policy = Draws(p, q, invalid)
    point = measured(states, policy, samples=samples)
    truth = (p @ p, q @ q, p @ q, ((p - q) ** 2).sum() / 2)
    for name, value in zip(METRICS, truth, strict=True):
        estimate = point.estimate(name)
        # One of twenty intervals misses the truth; none should by far.
        width = estimate.high - estimate.low
        assert abs(estimate.value - value) < 0.75 * width < 0.2, (name, value, estimate)
    comparable = point.estimate("d2_floor_not_comparable")
    assert comparable.n == 240 and (comparable.value > 0) == (invalid > 0)
    assert len(set(policy.seeds)) == len(policy.seeds) == 240 * 2 * samples
    assert policy.temperature == 1.0, "whatever evaluate.temperature is"


def test_rows_depend_on_neither_slots_nor_interruptions(tmp_path):
    """With the real sampler, at expert states that were decoded greedily."""
    config = kitchen.config_of(temperature=0.0)
    kitchen.play_in(tmp_path, config)
    files = []
    for slots, breaks in ((2, None), (3, 4)):
        at = kitchen.checkpoint_in(tmp_path, config, slots)
        path = probe_path(tmp_path, "floor", at.arm, at.step)
        if breaks:
            with pytest.raises(KeyboardInterrupt):
                measure(FloorProbe(), at, tmp_path, "games", _break_after(breaks))
        assert measure(FloorProbe(), at, tmp_path, "games") == 9
        files.append(path.read_bytes())
        path.unlink()
    assert files[0] == files[1]
    path.write_bytes(files[0])
    _, rows = read_probe(path, FloorRow)
    responses = [each for row in rows for each in (row.cot, row.prompt)]
    assert all(len(each) == 2 for each in responses)
    assert any(each[0] != each[1] for each in responses), "two samples differ"


def _break_after(count):
    def progress(done, total):
        if done == count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probes.floor.samples": 1}, "probes.floor.samples is 1; it must be at least 2"),
        ({"probes.floor.temperature": 0.0}, "greedy responses of a state are equal"),
        ({"evaluate.top_k": 1}, "evaluate.top_k is 1, so all samples of a state would be equal"),
    ],
    ids=str,
)
def test_settings_without_a_floor_are_refused(settings, words):
    config = default_config()
    FloorProbe().check(config)
    config.update_from_flattened_dict(settings)
    with pytest.raises(UsageError, match=words):
        FloorProbe().check(config)
