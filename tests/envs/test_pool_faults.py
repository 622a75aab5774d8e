"""Environments that crash, hang or send garbage within an episode, which is then replayed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import socket
import tempfile
import time
from functools import partial

import pytest
from helpers.pools import Counter, ended, exists, game, parent, run

from cotjax.envs.base import Game, Observation
from cotjax.envs.pool import messages
from cotjax.envs.pool.messages import Channel, MalformedMessageError
from cotjax.envs.pool.pool import EnvPool, Limits
from cotjax.errors import CotjaxError, DataError, EnvError, NotFiniteError

QUICK = Limits(start=60.0, reset=60.0, step=1.0)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1])
def test_an_environment_that_fails_within_an_episode_is_restarted_and_its_game_replayed(kind):
    with EnvPool(Counter, 2, 2, QUICK, retries=1) as pool:
        pool.reset({0: game("a"), 1: game("b")})
        pool.step({0: "x", 1: "y"})
        before = pool.pids()
        os.kill(before[0], kind)
        answers = pool.step({0: "z", 1: "z"})
        assert {slot: answer.text for slot, answer in answers.items()} == {0: "2 z", 1: "2 z"}
        assert pool.step({0: "w"})[0].text == "3 w"
        assert pool.pids()[0] != before[0] and pool.pids()[1] == before[1]
        said = {
            signal.SIGKILL: "exit code -9",
            signal.SIGSTOP: "no answer for 1 s",
            signal.SIGUSR1: "malformed message",
        }[kind]
        assert len(pool.faults(0)) == 1 and said in pool.faults(0)[0] and pool.faults(1) == ()
        assert not exists(before[0]), "neither running nor a zombie"
        # Its retry is used up. The next fault ends the episode, and names the game and the step.
        os.kill(pool.pids()[0], kind)
        lost = pool.step({0: "x"})[0]
        assert (
            isinstance(lost, EnvError)
            and "a, step 4 (slot 0)" in str(lost)
            and said in str(lost)
            and "after 1 retries" in str(lost)
        )
        assert isinstance(pool.step({0: "x"})[0], EnvError) and len(pool.faults(0)) == 2
        assert pool.reset({0: game("c")})[0][0] == "count in c" and pool.faults(0) == ()


def test_a_worker_that_stops_within_a_message_costs_one_time_limit():
    with EnvPool(Counter, 1, 1, QUICK, retries=1) as pool:
        pool.reset({0: game("a")})
        os.kill(pool.pids()[0], signal.SIGUSR2)
        started_at = time.monotonic()
        assert pool.step({0: "x"})[0].text == "1 x"
        assert 0.9 < time.monotonic() - started_at < 10
        assert len(pool.faults(0)) == 1 and "no answer for 1 s" in pool.faults(0)[0]


def test_an_environment_that_raises_gets_a_fresh_process():
    with EnvPool(Counter, 1, 1, QUICK, retries=2) as pool:
        pool.reset({0: game("a")})
        first = pool.pids()[0]
        answer = pool.step({0: "raise"})[0]
        assert (
            isinstance(answer, EnvError)
            and "the floor gives way" in str(answer)
            and len(pool.faults(0)) == 3
        )
        pool.reset({0: game("a")})
        assert pool.pids()[0] != first and not exists(first)


def test_neighbours_in_a_shared_process_are_replayed_too():
    with EnvPool(Counter, 2, 1, QUICK, retries=1) as pool:
        pool.reset({0: game("a"), 1: game("b")})
        pool.step({0: "x", 1: "y"})
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert pool.step({0: "z"})[0].text == "2 z"
        assert pool.step({1: "z"})[1].text == "2 z"


def test_a_replay_that_answers_otherwise_is_a_fault():
    with EnvPool(partial(Counter, moody=True), 1, 1, QUICK, retries=1) as pool:
        pool.reset({0: game("a")})
        pool.step({0: "x"})
        os.kill(pool.pids()[0], signal.SIGKILL)
        answer = pool.step({0: "y"})[0]
        assert isinstance(
            answer, EnvError
        ) and "replayed after a fault, it answered otherwise at reset" in str(answer)


@pytest.mark.parametrize("what", ["start", "reset", "step"])
def test_each_time_limit_is_its_own(what):
    """Two seconds exceed the limit of one second, and none of the others."""
    limits = Limits(**{"start": 60.0, "reset": 60.0, "step": 60.0} | {what: 1.0})
    slow = partial(Counter, slow=(what, 2.5 if what == "start" else 2.0))
    with EnvPool(slow, 1, 1, limits) as pool:
        if what == "start":
            with pytest.raises(EnvError, match="the process that starts the environments"):
                pool.reset({0: game("a")})
            return
        answer = pool.reset({0: game("a")})[0]
        if what == "step":
            assert answer[0] == "count in a"
            answer = pool.step({0: "x"})[0]
        assert isinstance(answer, EnvError) and "no answer for 1 s" in str(answer)
    with EnvPool(slow, 1, 1, Limits(60.0, 60.0, 60.0)) as pool:
        pool.reset({0: game("a")})
        assert pool.step({0: "x"})[0].text == "1 x"


def test_killing_the_server_costs_nothing_but_time():
    with EnvPool(Counter, 2, 2, QUICK, retries=1) as pool:
        pool.reset({0: game("a"), 1: game("b")})
        pids = set(pool.pids().values())
        os.kill(parent(min(pids)), signal.SIGKILL)
        assert ended(pids), "the kernel ends the environments with it"
        assert [answer.text for answer in pool.step({0: "x", 1: "y"}).values()] == ["1 x", "1 y"]


def test_nothing_is_left_of_a_closed_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with EnvPool(Counter, 3, 3, QUICK, retries=1) as pool:
        pool.reset({slot: game("a") for slot in range(3)})
        assert list(tmp_path.iterdir()), "where the environments have their temporary files"
        met = set(pool.pids().values())
        os.kill(min(met), signal.SIGSTOP)
        assert pool.step({0: "x", 1: "x", 2: "x"})[0].text == "1 x"
        met |= set(pool.pids().values())
        met.add(parent(pool.pids()[0]))
        os.kill(pool.pids()[1], signal.SIGSTOP)  # and one hangs when the pool is closed
    assert not any(map(exists, met)), "neither running nor a zombie"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_killed_caller(tmp_path):
    """One environment is idle, one stopped. Both end, and so do the server and its folder."""
    code = """
import os, signal
from helpers.pools import Counter, EnvPool, game, parent
pool = EnvPool(Counter, 2, 2)
pool.reset({0: game("a"), 1: game("b")})
pids = pool.pids()
print(*pids.values(), parent(pids[0]), flush=True)
os.kill(pids[1], signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGKILL)
"""
    caller = run(code, temporary=tmp_path)
    out, _ = caller.communicate()
    assert caller.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 3 and ended(pids)
    assert list(tmp_path.iterdir()) == []


def test_garbage_never_passes_for_a_message():
    """Random bytes alone, and before, within and after a message; a message cut short."""
    rng = random.Random(5)
    for trial in range(300):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            Channel(theirs).send({"number": trial, "seen": {"text": "x"}})
            line = ours.recv(1000)
            at, garbage = rng.randrange(len(line)), rng.randbytes(rng.randrange(8, 60))
            sent = (
                garbage,
                garbage + b"\n",
                line[:at] + garbage + line[at:],
                line[:at] + line,
                line[at + 1 :],
            )[trial % 5]
            theirs.sendall(sent)
            ours.settimeout(0.2)
            channel = Channel(ours)
            received = []
            with contextlib.suppress(MalformedMessageError):
                received.extend(channel.receive())
            # A message may be complete before the garbage begins.
            assert received == ([json.loads(line)] if sent.startswith(line) else [])


class Babbler:
    """Answers with whatever a step's action names."""

    def reset(self, game: Game) -> tuple[str, Observation]:
        return ("babble", Observation("begin", (), False, False)) if game.id != "mute" else None

    def step(self, action: str) -> Observation:
        if action == "leave":
            raise SystemExit("goodbye")
        if action == "deep":
            return self.step(action)
        if action == "broken game":
            raise DataError("the game is broken")
        if action == "half an error":
            raise EnvError("lost \ud800" + "x" * 5000)
        said = {
            "bytes": Observation(b"\xff\xfe", (), False, False),
            "number": Observation("x", (7,), False, False),
            "no commands": Observation("x", 7, False, False),
            "acceptance": Observation("x", (), False, False, accepted=None),
            "score": Observation("x", (), False, False, score=math.nan),
            "outcome": Observation("x", (), "false", False),
            "nothing": None,
            "dictionary": {"text": "x"},
            "huge": Observation("x" * (3 << 20), (), False, False),
            "many": Observation("x", ("go",) * (2 << 20), False, False),
            "unlisted": Observation("x", None, False, False, False, 0.5),
            "half": Observation("a\ud83d b\udc00", ("take \udfff",), False, True),
            "controls": Observation("\x1b[2J\0\u202e\x9b", ("\x07",), True, True),
            "long": Observation("🚀" * (1 << 19), (), False, False),
        }
        return said[action]

    def close(self) -> None:
        pass


BABBLE = (
    "bytes",
    "number",
    "no commands",
    "acceptance",
    "score",
    "outcome",
    "nothing",
    "dictionary",
    "huge",
    "many",
    "leave",
    "deep",
    "broken game",
)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_that_an_environment_answers_ends_a_run(workers):
    """An invalid observation costs its episode; any other text is passed on."""
    with EnvPool(Babbler, 1, workers) as pool:
        for said in BABBLE:
            pool.reset({0: game("g")})
            answer = pool.step({0: said})[0]
            assert isinstance(
                answer, EnvError
            ) and "g, step 1 (slot 0): the environment failed (" in str(answer), said
            assert len(str(answer)) < 2000
        lost = pool.reset({0: game("mute")})[0]
        assert isinstance(lost, EnvError) and "mute, reset (slot 0)" in str(lost)
        pool.reset({0: game("g")})
        lost = pool.step({0: "half an error"})[0]
        assert (
            isinstance(lost, EnvError)
            and str(lost).startswith("lost \ufffdxxx")
            and len(str(lost)) < 2000
        )
        for said, expected in (
            ("unlisted", Observation("x", None, False, False, False, 0.5)),
            ("half", Observation("a\ufffd b\ufffd", ("take \ufffd",), False, True)),
            ("controls", Observation("\x1b[2J\0\u202e\x9b", ("\x07",), True, True)),
            ("long", Observation("🚀" * (1 << 19), (), False, False)),
        ):
            pool.reset({0: game("g")})
            assert pool.step({0: said})[0] == expected


@pytest.mark.parametrize(
    ("line", "named"),
    [(b"[" * 50_000, "not JSON"), (b"7", "not a JSON object"), (b"", "not JSON")],
    ids=["nested lists", "a number", "nothing"],
)
def test_a_line_that_is_not_an_object_is_malformed(line, named):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(line + b"\n")
        with pytest.raises(MalformedMessageError, match=named):
            list(Channel(ours).receive())


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (DataError("a broken file"), DataError),
        (NotFiniteError("a NaN", slot=3), CotjaxError),
        (type("Foreign", (CotjaxError,), {})("of another package"), CotjaxError),
    ],
    ids=["known", "with more arguments", "unknown"],
)
def test_an_error_survives_the_way_as_a_message(sent, received):
    error = messages.error_from_message(messages.error_to_message(sent))
    assert type(error) is received and str(error) == str(sent)
    assert str(messages.error_from_message(["signal", "no class"])) == "no class"


def test_a_message_without_an_end_is_given_up(monkeypatch):
    """A process that writes and writes costs no more memory than the longest message."""
    monkeypatch.setattr(messages, "_LONGEST", 1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        theirs.sendall(b"x" * 600)
        assert list(channel.receive()) == []
        theirs.sendall(b"x" * 600)
        with pytest.raises(MalformedMessageError, match="1,200 bytes without an end"):
            list(channel.receive())


class Noisy(Babbler):
    def step(self, action: str) -> Observation:
        os.write(2, b"warning: \x1b]0;title\x07 \xff\n")
        return Observation("x", (), False, False)


def test_what_environments_write_to_stderr_is_shown_as_text(capsys):
    with EnvPool(Noisy, 1, 1) as pool:
        pool.reset({0: game("g")})
        pool.step({0: "x"})
    assert capsys.readouterr().err == "warning: \\x1b]0;title\\x07 \ufffd\n"
