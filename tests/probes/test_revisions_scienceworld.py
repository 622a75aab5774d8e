"""ScienceWorld's expert takes over from a state that was reached by replay."""

import importlib.util
import shutil

import pytest
from helpers.forks import checkpoint_of, experts, write_record_of

from cotjax.diagnostics.revisions import Ending
from cotjax.envs.scienceworld.world import WORLD
from cotjax.probes.revisions import RevisionsProbe

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("scienceworld") is None or shutil.which("java") is None,
    reason="without the package scienceworld or Java",
)
(GAME,) = (game for game in WORLD.games("", "train") if game.id == "easy/find-animal/0003")


def test_the_expert_finishes_after_each_action(tmp_path):
    """On the path, beside it, and after a focus on the wrong thing, which ends the episode."""
    (episode,) = experts(WORLD, [GAME], tmp_path)
    path = [step.action for step in episode.steps]
    assert len(path) > 2 and path[-2] != "look around" and path[0] != "inventory"
    # The expert's states: it is led astray in the first, loses a step in the last but one.
    pairs = [(action, action) for action in path]
    pairs[0] = ("focus on agent", path[0])
    pairs[-2] = ("look around", path[-2])
    write_record_of(tmp_path, WORLD, GAME, pairs, driver="reference", executed=path)
    # An episode that comes to the path after two steps for nothing.
    executed = ["inventory", "fly to the moon", *path]
    pairs = [("inventory", path[0]), ("fly to the moon", path[0])]
    pairs += [(action, action) for action in path]
    write_record_of(tmp_path, WORLD, GAME, pairs, driver="cot", executed=executed)
    at = checkpoint_of(tmp_path, WORLD, [GAME])
    probe = RevisionsProbe()
    rows = {(row.driver, row.turn): row for row in probe.measure(probe.states(at), at)}
    assert not [row.differs for row in rows.values() if row.differs]
    first, late = rows["reference", 0], rows["reference", len(path) - 2]
    assert first.verdict == "harmful" and first.cot_ending == Ending(steps=None, unknown=None)
    assert first.prompt_ending == Ending(steps=len(path) - 1, unknown=None)
    assert late.verdict == "harmful" and late.cot_ending == Ending(steps=2, unknown=None)
    assert late.prompt_ending == Ending(steps=1, unknown=None)
    for row in (rows["cot", 0], rows["cot", 1]):  # a step for nothing, understood or not
        assert row.verdict == "harmful" and row.cot_ending == Ending(steps=len(path), unknown=None)
        assert row.prompt_ending == Ending(steps=len(path) - 1, unknown=None)


def test_a_replay_that_differs_is_told_apart_from_a_lost_game(tmp_path):
    (episode,) = experts(WORLD, [GAME], tmp_path)
    path = [step.action for step in episode.steps]
    pairs = [(action, "look around") for action in path]
    changed = {1: "This room is called the moon."}
    write_record_of(
        tmp_path, WORLD, GAME, pairs, driver="reference", executed=path, changed=changed
    )
    at = checkpoint_of(tmp_path, WORLD, [GAME])
    rows = list(RevisionsProbe().measure(RevisionsProbe().states(at), at))
    assert [row.verdict for row in rows[1:]] == ["diverged"] * (len(path) - 1)
    assert all("step 1: the replay differs at character" in row.differs for row in rows[1:])
