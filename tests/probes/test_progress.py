"""How far episodes came, in made games: the expert finishes from where they ended."""

import pytest
from helpers.forks import ARM, STEP, checkpoint_of, experts, write_record_of

from cotjax.config import default_config
from cotjax.diagnostics.probe_rows import read_probe
from cotjax.diagnostics.progress import ProgressRow
from cotjax.diagnostics.revisions import Ending
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.probes.measuring import measure, probe_path
from cotjax.probes.progress import ProgressProbe

WORLD = load_world("alfworld")
COUNTS = {"valid_unseen": {"pick_clean_then_place_in_recep": 1, "pick_two_obj_and_place": 1}}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Made games, and the expert's actions in each."""
    folder = tmp_path_factory.mktemp("games")
    games = WORLD.make_games(folder / "games", COUNTS, 3)
    actions = {
        each.game: [step.action for step in each.steps] for each in experts(WORLD, games, folder)
    }
    return games, actions


def write(run, game, actions, driver="cot", sample=0, changed=None):
    pairs = [(action, action) for action in actions]
    write_record_of(
        run, WORLD, game, pairs, driver=driver, executed=actions, sample=sample, changed=changed
    )


def rows_of(run, games):
    measure(ProgressProbe(), checkpoint_of(run, WORLD, games), run, "games")
    return read_probe(probe_path(run, "progress", ARM, STEP), ProgressRow)[1]


def test_an_episode_counts_by_what_the_expert_has_left(tmp_path, played):
    games, actions = played
    for game in games:
        right = actions[game.id]
        write(tmp_path, game, right, "reference")
        write(tmp_path, game, right)
        write(tmp_path, game, right[:-2], sample=1)
        write(tmp_path, game, ["", "look", "fly to the moon"], sample=2)
        write(tmp_path, game, right[:-1], "prompt")
    rows = {(row.game, row.driver, row.sample): row for row in rows_of(tmp_path, games)}
    assert len(rows) == 4 * len(games), "expert states are no episodes that were played"
    for game in games:
        start = len(actions[game.id])
        found = [rows[game.id, "cot", sample] for sample in range(3)]
        assert [row.start for row in found] == [start] * 3
        assert [row.ending.steps for row in found] == [0, 2, start]
        expected = [1.0, 1 - 2 / start, 0.0]
        assert [row.counts()["progress_cot"] for row in found] == pytest.approx(expected)
        assert rows[game.id, "prompt", 0].counts() == {"progress_prompt": 1 - 1 / start}
        assert found[1].turn == start - 3


def test_what_is_not_known_counts_nowhere(tmp_path, played):
    games, actions = played
    first, second = games
    write(tmp_path, first, actions[first.id], "reference")
    write(tmp_path, first, ["look", "look"], changed={1: "A dragon is here."})
    write(tmp_path, second, ["look"])  # the expert's own episode is not there
    rows = {row.game: row for row in rows_of(tmp_path, games)}
    assert "step 1" in rows[first.id].differs and rows[first.id].ending is None
    assert rows[second.id].start is None and rows[second.id].ending.steps > 0
    assert all(row.counts() == {} for row in rows.values())


def row(start, ending):
    place = {"driver": "cot", "game": "g", "domain": "in_domain", "sample": 0, "turn": 3}
    return ProgressRow(**place, start=start, ending=ending, differs=None)


@pytest.mark.parametrize(
    ("steps", "progress"), [(0, 1.0), (3, 0.25), (4, 0.0), (6, -0.5), (9, -1.0), (None, -1.0)]
)
def test_progress_is_a_share_of_the_way_and_at_least_minus_one(steps, progress):
    ending = Ending(steps=steps, unknown=None)
    assert row(4, ending).counts() == {"progress_cot": pytest.approx(progress)}
    assert row(4, Ending(steps=None, unknown="the expert is lost")).counts() == {}


def test_a_world_without_an_expert_has_no_progress():
    config = default_config("helpers.kitchen:KITCHEN")
    with pytest.raises(UsageError, match=r"'progress' lets the world's expert finish.* has none"):
        ProgressProbe().check(config)
