"""The stream of games is a pure function of seed and position; groups of a step share no play."""

import pytest
from helpers.doors import game

from cotjax.errors import UsageError
from cotjax.rl.groups import Stream, groups_at

GAMES = [game(f"g{n}-red") for n in range(7)]


def test_the_game_at_a_position_depends_on_seed_ids_and_position_alone():
    stream, again = Stream(GAMES, 5), Stream(GAMES[::-1], 5)
    ids = [stream[position].id for position in range(35)]
    # In any order of asking, and of the games.
    assert [again[position].id for position in reversed(range(35))][::-1] == ids
    for epoch in range(5):
        assert sorted(ids[7 * epoch : 7 * epoch + 7]) == sorted(each.id for each in GAMES)
    assert ids[:7] != ids[7:14] and [Stream(GAMES, 6)[n].id for n in range(7)] != ids[:7]


def test_a_game_added_to_the_stream_keeps_the_order_of_the_others():
    order = [Stream(GAMES, 5)[n].id for n in range(7)]
    more = [Stream([*GAMES, game("new-red")], 5)[n].id for n in range(8)]
    assert [id for id in more if id != "new-red"] == order


def test_no_two_plays_of_a_step_are_equal_though_a_game_comes_again():
    stream = Stream(GAMES[:2], 0)
    first = groups_at(stream, begin=3, start=3, count=3, size=4)
    refilled = groups_at(stream, begin=3, start=6, count=2, size=4)
    groups = [*first, *refilled]
    assert [group.position for group in groups] == [3, 4, 5, 6, 7]
    plays = [(each.game.id, each.sample) for group in groups for each in group.plays]
    assert len(set(plays)) == len(plays) == 20
    assert all({each.game.id for each in group.plays} == {group.game.id} for group in groups)
    # Samples are counted anew in each step, whatever was played before.
    assert [each.sample for each in groups_at(stream, 4, 4, 1, 4)[0].plays] == [0, 1, 2, 3]


def test_a_stream_needs_games_and_each_once():
    with pytest.raises(UsageError, match="no games to play"):
        Stream([], 0)
    with pytest.raises(UsageError, match="8 games have 7 ids"):
        Stream([*GAMES, GAMES[0]], 0)
