"""Several plays of one game: told apart in seeds, paths, on resuming and in progress."""

import pytest
from helpers.kitchen import GAMES, config_of, play_in

from cotjax.diagnostics.episodes import count_records
from cotjax.diagnostics.metrics import points
from cotjax.errors import UsageError
from cotjax.rollout.record import read_records, record_path
from cotjax.study.evaluate import playing_of


def plain(record):
    """Return a record without its times and rounded probabilities."""
    rounded = {kind: {"logprob", "logprobs"} for kind in ("cot", "prompt")}
    return record.model_dump(exclude={"timing": True, "steps": {"__all__": rounded}})


def by_play(folder):
    return {
        (record.driver, record.game.id, record.sample): plain(record)
        for record in read_records(folder / "records")
    }


def answers(record):
    return [
        step[kind]["ids"] for step in record["steps"] for kind in ("cot", "prompt") if step[kind]
    ]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Two samples of two games."""
    folder = tmp_path_factory.mktemp("played")
    reports = play_in(folder, config_of(samples=2), GAMES[:2])
    return folder, reports


def test_each_driver_plays_each_game_so_many_times_and_no_two_are_equal(played):
    folder, reports = played
    records = by_play(folder)
    assert len(records) == len(reports) == 3 * 2 * 2
    assert [done for done, total, _ in reports if total == 12] == [*range(1, 13)]
    assert {sample for _, _, sample in records} == {0, 1}
    for (driver, game, sample), record in records.items():
        first, second = (answers(records[driver, game, number]) for number in (0, 1))
        assert first != second, (driver, game)
        seeds = {answers_seed for each in record["steps"] for answers_seed in _seeds(each)}
        others = {
            seed
            for (other, name, number), each in records.items()
            if (name, number) == (game, 1 - sample) and other == driver
            for step in each["steps"]
            for seed in _seeds(step)
        }
        assert not seeds & others
        assert record_path(
            folder / "records",
            arm="base",
            checkpoint=0,
            driver=driver,
            game_id=game,
            sample=sample,
        ).exists()


def _seeds(step):
    return [step[kind]["seed"] for kind in ("cot", "prompt") if step[kind]]


def test_more_samples_on_the_same_run_play_what_is_missing_alone(played, tmp_path):
    folder, _ = played
    both = by_play(folder)
    few = tmp_path / "few"
    play_in(few, config_of(samples=1), GAMES[1::-1])
    first = by_play(few)
    assert {sample for _, _, sample in first} == {0}
    kept = {path: path.stat().st_mtime_ns for path in (few / "records").rglob("*.json")}
    reports = play_in(few, config_of(samples=2), GAMES[:2])
    assert [done for done, _, _ in reports] == [*range(7, 13)]
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert by_play(few) == both, "a sample is the same in any order and in any slot"
    lost = record_path(
        few / "records", arm="base", checkpoint=0, driver="cot", game_id="g1", sample=1
    )
    lost.unlink()
    assert len(play_in(few, config_of(samples=2), GAMES[:2])) == 1
    assert by_play(few) == both


def test_the_samples_of_a_game_are_one_game_and_paired_by_number(played):
    folder, _ = played
    (point,) = points(count_records(folder / "records")).values()
    for metric, episodes in (("d3_cot", 4), ("gap", 4), ("d1_cot", 2 * (1 + 2))):
        estimate = point.estimate(metric)
        assert (estimate.games, estimate.n) == (2, episodes), metric


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 0}, "evaluate.samples is 0; it must be at least 1"),
        ({"samples": 2, "temperature": 0.0}, "evaluate.temperature is 0.0, so all samples of a"),
        ({"samples": 2, "top_k": 1}, "evaluate.top_k is 1, so all samples of a game would be eq"),
    ],
    ids=str,
)
def test_samples_that_would_be_equal_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        playing_of(config_of(**changes))
    assert playing_of(config_of(samples=1, temperature=0.0)).samples == 1
