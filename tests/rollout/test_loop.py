"""The loop, on a world of cabinets and a policy that answers by rule."""

import json
import threading
import time

import pytest
from helpers import tiny
from helpers.rollouts import Cabinets, Generation, RulePolicy, as_record, games, play_games
from pydantic import ValidationError

from cotjax.envs.base import Observation
from cotjax.errors import DataError, InternalError, UsageError
from cotjax.rollout.record import Timing, read_records, record_path, write_record
from cotjax.rollout.replay import ReplayEnvironments


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def _play(codec, games, driver, environments=None, **kwargs):
    episodes = play_games(codec, games, driver, environments=environments, **kwargs)
    return {episode.game.id: episode for episode in episodes}


def test_cot_actions_drive_and_prompt_actions_are_recorded_too(codec):
    records = _play(codec, games(1, 2, 3, 4, 5), "cot")
    assert sorted(records) == ["g1", "g2", "g3", "g4", "g5"]
    record = records["g3"]
    assert record.success and record.ended == "won" and len(record.steps) == 3
    assert [step.executed for step in record.steps] == [
        "open cabinet 1",
        "open cabinet 2",
        "open cabinet 3",
    ]
    step = record.steps[0]
    assert step.cot.thought == "i need a plate." and step.cot.valid and step.cot.admissible
    assert step.prompt.action == "look" and step.prompt.thought is None
    assert step.cot.logprob == pytest.approx(-0.5 * step.cot.new_tokens)
    assert codec.decode(step.cot.ids) == step.cot.text


def test_the_next_prompt_is_the_exact_previous_ids_and_the_new_ones(codec):
    policy = RulePolicy(codec, slots=1)
    record = _play(codec, games(3), "cot", policy=policy)["g3"]
    expected = codec.first_prompt(record.task, record.steps[0].observation)
    for before, after in zip(record.steps, record.steps[1:], strict=False):
        assert before.prompt_length == len(expected)
        expected += codec.next_prompt(before.executed, after.observation)
    assert policy.prompts[0] == expected


def test_environments_step_while_the_other_action_is_decoded(codec):
    """The environment answers only while the prompt action is decoded."""
    decoding = threading.Event()

    class Decodes(RulePolicy):
        def sample(self, prefixes, **kwargs):
            if any(prefixes.values()):
                decoding.set()
            return super().sample(prefixes, **kwargs)

    class Waits(Cabinets):
        def step(self, actions):
            assert decoding.wait(20)
            decoding.clear()
            return super().step(actions)

    records = _play(codec, games(1, 2, 3), "cot", Waits(), policy=Decodes(codec))
    assert all(
        record.success and record.steps[0].prompt.action == "look" for record in records.values()
    )


def test_environments_of_one_half_step_while_the_other_half_is_decoded(codec):
    """Each environment answers only when the other half has decoded the turn after its own."""

    class Waits(Cabinets):
        def __init__(self, other, ahead):
            super().__init__()
            self.other, self.ahead, self.turn = other, ahead, 0

        def step(self, actions):
            self.turn += 1
            limit = time.monotonic() + 20
            while len(self.other.sampled) < min(self.turn + self.ahead, 6):
                assert time.monotonic() < limit
                time.sleep(0.001)
            return super().step(actions)

    first, second = RulePolicy(codec), RulePolicy(codec)
    records = _play(
        codec,
        games(1, 2, 3, 4),
        "prompt",
        Waits(second, 0),
        policy=first,
        second_half=(second, Waits(first, 1)),
    )
    assert [len(record.steps) for record in records.values()] == [6] * 4


def test_each_half_plays_every_other_game_in_its_own_slots(codec):
    first, second = Cabinets(), Cabinets()
    records = _play(
        codec,
        games(1, 2, 9, 4, 3),
        "cot",
        first,
        policy=RulePolicy(codec, slots=1),
        second_half=(RulePolicy(codec, slots=1), second),
    )
    assert [{game for game, _ in half.sent} for half in (first, second)] == [
        {"g1", "g9", "g3"},
        {"g2", "g4"},
    ]
    whole = _play(codec, games(1, 2, 9, 4, 3), "cot")
    for game, record in whole.items():
        assert record.model_dump(exclude={"timing"}) == records[game].model_dump(exclude={"timing"})


def test_a_slot_takes_the_next_game_and_its_own_faults(codec):
    """The game that breaks leaves its slot to others, and what it did wrong stays with it."""
    records = _play(codec, games(9, 1, 2, 3, 4), "cot", policy=RulePolicy(codec, slots=1))
    assert [game for game, record in records.items()] == ["g9", "g1", "g2", "g3", "g4"]
    faults = [list(record.env_faults) for record in records.values()]
    assert faults == [["the engine is gone"], [], [], [], []]


def test_prompt_actions_drive_alone_until_the_step_limit(codec):
    record = _play(codec, games(2), "prompt")["g2"]
    assert not record.success and record.ended == "step_limit" and len(record.steps) == 6
    assert all(
        step.cot is None and step.executed == "look" and step.accepted is False
        for step in record.steps
    )


def test_an_episode_that_ends_without_a_win_is_not_won(codec):
    class Over(Cabinets):
        def step(self, actions):
            answers = super().step(actions)
            return {
                slot: Observation("The game is over.", (), False, self.games[slot][1] == 2)
                for slot in answers
            }

    for record in _play(codec, games(1, 2, 5), "cot", Over()).values():
        assert (record.ended, record.success, len(record.steps)) == (
            "step_limit",
            False,
            2,
        )


def test_a_turn_says_whether_the_environment_accepted_the_action_and_its_score(codec):
    class Reads(Cabinets):
        def step(self, actions):
            accepted = {"g1": False, "g2": True}
            return {
                slot: Observation("Hm.", None, False, True, accepted[self.games[slot][0].id], 0.5)
                for slot in actions
            }

    records = _play(codec, games(1, 2), "cot", Reads())
    assert [records[game].steps[0].accepted for game in ("g1", "g2")] == [False, True]
    for record in records.values():
        assert record.score == record.steps[0].score == 0.5 and not record.success


def test_where_the_environment_lists_no_commands_no_action_is_called_admissible_or_not(codec):
    class Unlisted(Cabinets):
        def reset(self, games):
            first = Observation("You see a cabinet 1.", None, False, False)
            return {slot: (task, first) for slot, (task, _) in super().reset(games).items()}

    (step,) = _play(codec, games(1), "cot", Unlisted())["g1"].steps
    assert step.admissible_commands is step.cot.admissible is step.prompt.admissible is None
    assert step.cot.valid and step.executed == "open cabinet 1"


def test_prompt_actions_may_be_left_out(codec):
    paired, alone = (_play(codec, games(1, 3), "cot", kinds=kinds) for kinds in (None, ()))
    assert all(step.prompt is None for record in alone.values() for step in record.steps)
    for game, record in alone.items():
        assert record.success and record.steps == tuple(
            step.model_copy(update={"prompt": None}) for step in paired[game].steps
        )


def test_the_environments_time_is_counted_once_and_that_of_the_first_games_is_waited_for(codec):
    class Slow(Cabinets):
        took = 0.0

        def reset(self, games):
            started_at = time.perf_counter()
            time.sleep(0.05)
            answers = super().reset(games)
            self.took += time.perf_counter() - started_at
            return answers

        def step(self, actions):
            started_at = time.perf_counter()
            answers = super().step(actions)
            self.took += time.perf_counter() - started_at
            return answers

    slow = Slow()
    records = _play(codec, games(1, 2, 3, 4), "cot", slow)
    timing = {game: record.timing for game, record in records.items()}
    # Half of the first reset each.
    assert timing["g1"].waited_s >= 0.025 and timing["g2"].waited_s >= 0.025
    assert slow.took == pytest.approx(sum(each.environment_s for each in timing.values()), rel=0.3)


def test_time_in_which_both_halves_wait_is_hidden_by_nothing(codec):
    """Decoding takes no time here, so each half waits for all of its environments' time."""

    class Slow(Cabinets):
        def step(self, actions):
            time.sleep(0.05)
            return super().step(actions)

    records = _play(
        codec,
        games(1, 2, 3, 4),
        "prompt",
        Slow(),
        second_half=(RulePolicy(codec), Slow()),
        max_steps=3,
    )
    for record in records.values():
        assert record.timing.waited_s > 0.7 * record.timing.environment_s > 0.05


def test_what_the_environment_does_wrong_ends_that_episode_alone(codec):
    records = _play(codec, games(9, 4), "cot")
    assert (
        records["g9"].ended == "env_error"
        and "step 2" in records["g9"].env_error
        and not records["g9"].success
    )
    assert records["g9"].env_faults == ("the engine is gone",)
    assert (
        records["g4"].success and records["g4"].env_error is None and records["g4"].env_faults == ()
    )


def test_a_prompt_that_no_longer_fits_ends_the_episode(codec):
    record = _play(
        codec,
        games(5),
        "cot",
        policy=RulePolicy(codec, max_length=110),
        max_steps=30,
        max_new_tokens=20,
    )["g5"]
    assert record.ended == "length" and not record.success and 0 < len(record.steps) < 5


def test_expert_states_are_replayed_whatever_the_model_says(codec):
    trajectories = {f"g{i}": tiny.trajectory(name=f"t{i}", steps=i) for i in (1, 3, 4)}
    references = {game: [step.action for step in t.steps] for game, t in trajectories.items()}
    records = _play(
        codec, games(1, 3, 4), "reference", ReplayEnvironments(trajectories), references=references
    )
    for game, trajectory in trajectories.items():
        steps = records[game].steps
        assert [step.observation for step in steps] == [
            step.observation for step in trajectory.steps
        ]
        assert (
            [step.reference for step in steps]
            == [step.executed for step in steps]
            == references[game]
        )
        assert [step.prompt.action for step in steps] == ["look"] * len(steps)


def test_records_do_not_depend_on_the_number_of_slots(codec):
    def stable(records):
        return {game: record.model_dump(exclude={"timing"}) for game, record in records.items()}

    every = games(1, 2, 3, 4, 5)
    one, many = (
        _play(codec, every, "cot", policy=RulePolicy(codec, slots=slots)) for slots in (1, 4)
    )
    assert stable(one) == stable(many)


def test_an_invalid_response_costs_a_step_and_says_why(codec):
    class Mumbles(RulePolicy):
        def sample(self, prefixes, **kwargs):
            return {
                slot: Generation(self.codec.encode("<think> i look"), [0.0]) for slot in prefixes
            }

    record = _play(codec, games(1), "cot", policy=Mumbles(codec))["g1"]
    assert record.ended == "step_limit"
    assert record.steps[0].cot.reason == "unclosed_thought" and record.steps[0].executed == ""


def test_an_unknown_driver_is_refused(codec):
    with pytest.raises(UsageError, match="driver"):
        _play(codec, games(1), "judge")


def test_a_record_that_json_cannot_hold_is_not_written(codec, tmp_path):
    record = as_record(_play(codec, games(1), "cot")["g1"])
    for worth in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            Timing(environment_s=worth, waited_s=0.0, sampler_s=0.0, total_s=0.0)
        broken = record.model_copy(update={"score": worth})
        with pytest.raises(InternalError, match=r"a\.json: the record does not fit into JSON"):
            write_record(tmp_path / "a.json", broken)
    assert not list(tmp_path.iterdir())


def test_records_are_written_atomically_and_broken_ones_are_named(codec, tmp_path):
    record = as_record(_play(codec, games(1), "cot")["g1"])
    names = [f"{'x' * 80}/{i}" for i in range(3)]
    paths = [
        record_path(tmp_path, arm="sft", checkpoint=5, driver="cot", game_id=name) for name in names
    ]
    assert len(set(paths)) == 3 and all(len(path.name) < 100 for path in paths)
    for path in paths:
        write_record(path, record)
    assert list(read_records(tmp_path)) == [record] * 3
    text = paths[0].read_text()
    assert list(json.loads(text))[:3] == ["schema_version", "world", "arm"]
    assert json.loads(text)["schema_version"] == 4
    paths[0].write_text(text[:-4])
    with pytest.raises(DataError, match=paths[0].name):
        list(read_records(tmp_path))
    with pytest.raises(DataError, match="cotjax evaluate"):
        list(read_records(tmp_path / "none"))
