"""Revisions with a known judgement, in made games: the environment finds it."""

import json

import pytest
from helpers.forks import ARM, STEP, checkpoint_of, experts, write_record_of

from cotjax.config import default_config
from cotjax.diagnostics.episodes import count_records
from cotjax.diagnostics.metrics import METRICS, points
from cotjax.diagnostics.probe_rows import read_probe
from cotjax.diagnostics.probes import count_probes
from cotjax.diagnostics.revisions import (
    MOST_STEPS,
    Ending,
    RevisionRow,
    saved_steps,
    verdict,
)
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError, UsageError
from cotjax.probes.measuring import measure, probe_path
from cotjax.probes.revisions import RevisionsProbe

WORLD = load_world("alfworld")
COUNTS = {"valid_unseen": {"pick_clean_then_place_in_recep": 1, "pick_two_obj_and_place": 1}}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Made games, and the expert's actions in each: more than seven, and won by the last."""
    folder = tmp_path_factory.mktemp("games")
    games = WORLD.make_games(folder / "games", COUNTS, 3)
    actions = {
        each.game: [step.action for step in each.steps] for each in experts(WORLD, games, folder)
    }
    assert len(games) == 2 and all(len(each) > 7 for each in actions.values())
    return games, actions


def planted(run, games, actions, swap=False):
    """Write expert states and a CoT-driven episode of each game, whose revisions are known."""
    for game in games:
        right = actions[game.id]
        take = next(n for n, action in enumerate(right) if action.startswith("take"))
        place = right[take].rpartition(" from ")[2]
        pairs = [(action, action) for action in right]
        pairs[0] = (f"go to {place}", "look")  # straight to the thing; a step for nothing
        pairs[take] = (right[take], "fly to the moon")  # takes it, against nothing
        pairs[-1] = (right[-1], right[0])  # wins, against walking away
        pairs[-2] = ("look", "inventory")  # one step for nothing each
        pairs[-3] = (None, right[-3])  # no two actions
        pairs[1] = ("inventory", " inventory ")  # the same, and not the reference action
        if swap:
            pairs = [(prompt, cot) for cot, prompt in pairs]
        write_record_of(run, WORLD, game, pairs, driver="reference", executed=right)
        executed = ["look", "", *right]
        pairs = [("look", right[0]), (None, right[0]), *((each, each) for each in right)]
        pairs[-1] = (right[-1], "look")
        if swap:
            pairs = [(prompt, cot) for cot, prompt in pairs]
        write_record_of(run, WORLD, game, pairs, driver="cot", executed=executed)


def rows_of(run, games, **others):
    at = checkpoint_of(run, WORLD, games, **others)
    measure(RevisionsProbe(), at, run, "games")
    return read_probe(probe_path(run, "revisions", ARM, STEP), RevisionRow)[1]


def values(run):
    point = points(count_records(run / "records"), count_probes(run))[ARM, STEP, "in_domain"]
    return {
        name: point.estimate(name).value for name in METRICS if METRICS[name].source == "revisions"
    }


def test_planted_revisions_get_their_judgement(tmp_path, played):
    games, actions = played
    planted(tmp_path, games, actions)
    rows = rows_of(tmp_path, games)
    for game in games:
        right = actions[game.id]
        take = next(n for n, action in enumerate(right) if action.startswith("take"))
        own = {row.turn: row for row in rows if (row.game, row.driver) == (game.id, "reference")}
        assert len(own) == len(right)
        found = {turn: row.verdict for turn, row in own.items()}
        expected = dict.fromkeys(range(len(right)), "same")
        expected |= {0: "helpful", take: "helpful", len(right) - 1: "helpful"}
        expected |= {len(right) - 2: "neutral", len(right) - 3: "not_comparable"}
        assert found == expected
        first, last = own[0], own[len(right) - 1]
        assert first.prompt_ending == Ending(steps=len(right), unknown=None)
        assert first.reference_ending == Ending(steps=len(right) - 1, unknown=None)
        assert last.cot_ending.steps == 0 and last.prompt_ending.steps >= 2
        alike = own[take + 1]
        assert alike.cot_ending is alike.reference_ending is None, "nothing to compare"
        assert own[1].cot_ending.steps == own[1].reference_ending.steps + 1
    driven = [row for row in rows if row.driver == "cot"]
    assert [row.verdict for row in driven if row.turn < 2] == ["harmful", "not_comparable"] * 2
    assert all(row.reference is row.reference_ending is None for row in driven)


def test_swapping_the_two_actions_swaps_the_judgement(tmp_path, played):
    games, actions = played
    found = {}
    for swap in (False, True):
        run = tmp_path / str(swap)
        planted(run, games, actions, swap)
        rows_of(run, games)
        found[swap] = values(run)
    right, wrong = found[False], found[True]
    states = sum(len(actions[game.id]) for game in games)
    comparable = states - len(games)
    assert right["judged_helpful"] == pytest.approx(6 / comparable)
    assert right["judged_neutral"] == pytest.approx(2 / comparable)
    assert right["judged_harmful"] == right["judged_unknown"] == right["replay_diverged"] == 0
    assert right["judged_harmful_cot_driven"] == pytest.approx(2 / (states + 2))
    assert right["judged_helpful_cot_driven"] == pytest.approx(2 / (states + 2))
    for end in ("", "_cot_driven"):
        assert right[f"judged_helpful{end}"] == wrong[f"judged_harmful{end}"]
        assert right[f"judged_harmful{end}"] == wrong[f"judged_helpful{end}"]
        assert right[f"judged_neutral{end}"] == wrong[f"judged_neutral{end}"]
        assert right[f"saved_steps{end}"] == pytest.approx(-wrong[f"saved_steps{end}"])
    assert right["saved_steps"] > 0
    # Wrong in all: the three that cost steps. The invalid one is wrong for its own kind alone, and
    # the way straight to the thing is as good as the reference, though it is another action.
    costly = {"cot": 3, "prompt": 5}
    for kind, other in (("cot", "prompt"), ("prompt", "cot")):
        good = states - len(games) * costly[kind]
        assert right[f"d1_plan_{kind}"] == pytest.approx(good / states), kind
        assert wrong[f"d1_plan_{other}"] == pytest.approx(good / states), kind


def test_a_replay_that_differs_is_reported_apart_and_never_counted(tmp_path, played):
    games, actions = played
    for game in games:
        right = actions[game.id]
        pairs = [(action, "look") for action in right]
        changed = {} if game is games[0] else {1: "A dragon is here."}
        write_record_of(
            tmp_path, WORLD, game, pairs, driver="reference", executed=right, changed=changed
        )
    rows = rows_of(tmp_path, games)
    other = [row for row in rows if row.game == games[1].id]
    assert [row.verdict for row in other] == ["helpful", *["diverged"] * (len(other) - 1)]
    assert all("step 1: the replay differs at character" in row.differs for row in other[1:])
    assert all(row.cot_ending is row.prompt_ending is None for row in other[1:])
    assert {key for row in other[1:] for key in row.counts()} == {"replay_diverged"}
    found = values(tmp_path)
    assert found["judged_helpful"] == 1.0
    assert found["replay_diverged"] == pytest.approx((len(other) - 1) / len(rows))
    assert found["saved_steps"] == found["d1_plan_cot"] == 1.0 and found["d1_plan_prompt"] == 0.0


def test_an_interrupted_measurement_ends_in_the_same_bytes(tmp_path, played, monkeypatch):
    games, actions = played
    planted(tmp_path, games, actions)
    rows_of(tmp_path, games)
    path = probe_path(tmp_path, "revisions", ARM, STEP)
    whole = path.read_bytes()
    path.unlink()
    real = RevisionsProbe.measure

    def interrupted(self, states, at):
        for number, row in enumerate(real(self, states, at)):
            if number == len(states) - 3:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(RevisionsProbe, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rows_of(tmp_path, games)
    assert not path.exists()
    rows_of(tmp_path, games)
    assert path.read_bytes() == whole
    assert json.loads(whole.splitlines()[0])["settings"] == {"limit": 100}


def test_a_part_of_the_states_is_drawn_by_the_seed(tmp_path, played):
    games, actions = played
    planted(tmp_path, games, actions)
    at = checkpoint_of(tmp_path, WORLD, games)
    at.config.probes.revisions.states = 5
    states = RevisionsProbe().states(at)
    assert [state.record.driver for state in states] == ["reference"] * 5 + ["cot"] * 5


def test_a_game_that_is_gone_is_named(tmp_path, played):
    games, actions = played
    planted(tmp_path, games, actions)
    with pytest.raises(DataError, match=f"the game {games[1].id} has records at sft, step 60"):
        rows_of(tmp_path, games[:1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("probes.revisions.states", -1, "states is -1"),
        ("probes.revisions.limit", 0, "limit is 0"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    config = default_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=message):
        RevisionsProbe().check(config)


def test_verdicts_and_steps_saved_by_the_endings():
    lost, unknown = Ending(steps=None, unknown=None), Ending(steps=None, unknown="no path")
    three, five, far = (Ending(steps=steps, unknown=None) for steps in (3, 5, 90))
    cases = {
        (three, five): ("helpful", 2),
        (five, three): ("harmful", -2),
        (three, three): ("neutral", 0),
        (three, far): ("helpful", MOST_STEPS),
        (far, lost): ("helpful", MOST_STEPS),
        (lost, three): ("harmful", -MOST_STEPS),
        (lost, lost): ("neutral", 0),
        (three, unknown): ("unknown", None),
        (unknown, lost): ("unknown", None),
    }
    for (cot, prompt), expected in cases.items():
        assert (verdict(cot, prompt), saved_steps(cot, prompt)) == expected
