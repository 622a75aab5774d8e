"""A pool answers as one process does; a crash, a hang or a broken game costs its slots alone."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
from helpers.pools import Echo, ended, game, is_running, run, started

from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.base import Observation
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import DataError, EnvError, UsageError


def test_interleaved_slots_equal_one_process(tmp_path):
    """Five ALFWorld slots on two workers, each with its own walk, and the same without workers."""
    counts = {"train": {"pick_and_place_simple": 1, "look_at_obj_in_light": 1}}
    games = make_games(tmp_path / "games", counts, seed=5, workers=1)
    factory = partial(AlfworldEnv, max_steps=8, cache_dir=str(tmp_path / "pddl"))

    def played(workers):
        with EnvPool(factory, slots=5, workers=workers) as pool:
            first = pool.reset({slot: games[slot % 2] for slot in range(5)})
            record = [first]
            now = {slot: observation for slot, (_, observation) in first.items()}
            while now := {slot: seen for slot, seen in now.items() if not seen.done}:
                turn = len(record)
                choices = {slot: seen.admissible_commands for slot, seen in now.items()}
                now = pool.step(
                    {
                        slot: commands[(7 * slot + turn) % len(commands)]
                        for slot, commands in choices.items()
                    }
                )
                record.append(now)
            return record

    alone = played(workers=0)
    assert len(alone) == 9
    assert played(workers=2) == alone


def test_workers_play_in_parallel_and_without_jax():
    with EnvPool(Echo, slots=2, workers=2) as pool:
        pids = started(pool, 2)
        assert len({*pids.values(), os.getpid()}) == 3
        begin = time.monotonic()
        pool.step(dict.fromkeys(range(2), "sleep 2"))
        assert time.monotonic() - begin < 3.5
        assert not {"jax", "flax", "torch"} & set(pool.step({0: "modules x"})[0].text.split())


def test_workers_do_not_run_the_callers_script(tmp_path):
    """Without the `if __name__ == "__main__"` that multiprocessing asks for."""
    script = tmp_path / "script.py"
    script.write_text("""
from helpers.pools import Echo, EnvPool, started
print("the script runs", flush=True)
with EnvPool(Echo, slots=2, workers=2) as pool:
    assert len(set(started(pool, 2).values())) == 2
""")
    caller = run(script)
    out, _ = caller.communicate()
    assert caller.returncode == 0
    assert out == "the script runs\n"


def test_a_killed_worker_costs_its_slots_and_no_other():
    with EnvPool(Echo, slots=4, workers=2) as pool:
        pids = started(pool, 4)
        assert pids[0] == pids[2] != pids[1] == pids[3]
        os.kill(pids[0], signal.SIGKILL)
        answers = pool.step({slot: "look" for slot in (0, 1, 3)})
        assert isinstance(answers[0], EnvError)
        assert "g0, step 2 (slot 0)" in str(answers[0]) and "-9" in str(answers[0])
        assert [answers[slot].text for slot in (1, 3)] == ["g1 2 look", "g3 2 look"]
        # Slot 2 asked for nothing, but its game was lost with the worker, until it is reset.
        for step in (2, 3):
            lost = pool.step({2: "look"})[2]
            assert isinstance(lost, EnvError) and f"g2, step {step} (slot 2)" in str(lost)
        assert pool.reset({0: game("again"), 2: game("too")})[0][0] == "play again"
        assert pool.step({0: "look", 2: "look", 3: "look"}) == {
            0: Observation("again 1 look", (), False, False),
            2: Observation("too 1 look", (), False, False),
            3: Observation("g3 3 look", (), False, False),
        }
        assert ended([pids[0]])


def test_answers_given_before_a_crash_count():
    with EnvPool(Echo, slots=2, workers=1) as pool:
        started(pool, 2)
        answers = pool.step({0: "look", 1: "exit 7"})
        assert answers[0].text == "g0 2 look"
        assert isinstance(answers[1], EnvError) and "exit code 7" in str(answers[1])
        assert isinstance(pool.step({0: "look"})[0], EnvError)


def test_a_hung_worker_is_replaced():
    with EnvPool(Echo, slots=3, workers=2, limits=Limits(step=1.0)) as pool:
        pids = started(pool, 3)
        begin = time.monotonic()
        answers = pool.step({0: "sleep 100", 1: "look", 2: "look"})
        assert 0.9 < time.monotonic() - begin < 10
        assert answers[1].text == "g1 2 look"
        assert all(
            isinstance(answers[slot], EnvError) and "no answer for 1 s" in str(answers[slot])
            for slot in (0, 2)
        )
        assert ended([pids[0]])
        assert pool.reset({0: game("again")})[0][0] == "play again"


def test_the_time_limit_is_for_each_request():
    """Four requests of 0.5 s each in one worker take 2 s, and none of them is late."""
    with EnvPool(Echo, slots=4, workers=1, limits=Limits(step=1.5)) as pool:
        started(pool, 4)
        answers = pool.step(dict.fromkeys(range(4), "sleep 0.5"))
        assert [answer.text for answer in answers.values()] == [
            f"g{slot} 2 sleep 0.5" for slot in range(4)
        ]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_games_and_of_environments(workers):
    with EnvPool(Echo, slots=3, workers=workers) as pool:
        with pytest.raises(DataError, match="/games/broken: broken"):
            pool.reset({0: game("fine"), 1: game("broken"), 2: game("good")})
        # Later answers still belong to their requests.
        assert pool.step({0: "look", 2: "look"})[2].text == "good 1 look"
        failed = pool.step({0: "raise eyebrows", 2: "look"})
        assert isinstance(failed[0], EnvError)
        assert "fine, step 2 (slot 0)" in str(failed[0]) and "RuntimeError: cannot eyebrows" in str(
            failed[0]
        )
        assert failed[2].text == "good 2 look"


def test_wrong_use_raises_a_usage_error():
    for slots, workers, timeout in ((0, 1, 1.0), (1, -1, 1.0), (1, 1, 0.0)):
        with pytest.raises(UsageError, match="a pool needs"):
            EnvPool(Echo, slots, workers, Limits(step=timeout))
    with pytest.raises(UsageError, match="picklable"):
        EnvPool(lambda: Echo(), slots=1, workers=1)
    with EnvPool(Echo, slots=2, workers=0) as pool:
        with pytest.raises(UsageError, match="step before reset"):
            pool.step({0: "look"})
        with pytest.raises(UsageError, match="slots 0 to 1"):
            pool.reset({2: game("g")})
    with pytest.raises(UsageError, match="closed"):
        pool.reset({0: game("g")})


def test_a_factory_that_fails_is_reported_and_leaves_nothing():
    pool = EnvPool(partial(AlfworldEnv, max_steps=0), slots=4, workers=2)
    with pytest.raises(UsageError, match="max_steps must be at least 1"):
        pool.reset({0: game("g")})
    with pytest.raises(UsageError, match="closed"):
        pool.reset({0: game("g")})


def test_no_process_is_left_after_close():
    with EnvPool(Echo, slots=3, workers=3) as pool:
        pids = set(started(pool, 3).values())
        assert all(map(is_running, pids))
        # Ctrl-C reaches every process of a terminal; workers leave it to the parent.
        os.kill(min(pids), signal.SIGINT)
        assert {
            answer.text for answer in pool.step({slot: "pid" for slot in range(3)}).values()
        } == set(map(str, pids))
    assert not any(map(is_running, pids))


def test_a_dropped_pool_ends_its_workers():
    pool = EnvPool(Echo, slots=1, workers=1)
    pids = set(started(pool, 1).values())
    del pool
    assert ended(pids)


def test_workers_end_with_a_parent_that_is_killed():
    """Both an idle worker, which sees its channel close, and one that hangs, which does not."""
    code = """
import os, threading, time
from helpers.pools import Echo, EnvPool, started
pool = EnvPool(Echo, slots=2, workers=2)
print(*set(started(pool, 2).values()), flush=True)
threading.Thread(target=pool.step, args=({0: "sleep 100"},), daemon=True).start()
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""
    caller = run(code)
    out, _ = caller.communicate()
    assert caller.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 2
    assert ended(pids)
