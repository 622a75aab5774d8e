"""BFCL: actions are read and never evaluated, episodes begin afresh, the package's checker decides.

The package is installed without its dependencies (launch/test.sh).
"""

from __future__ import annotations

import gc
import json
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FunctionType

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval mpmath")
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.data.trajectories import read_trajectories
from cotjax.envs.base import Game
from cotjax.envs.bfcl import entries as entries_module
from cotjax.envs.bfcl.back_ends import accepts, prepare
from cotjax.envs.bfcl.calls import Call, CallError, action_of, parse_action
from cotjax.envs.bfcl.entries import TASK_TYPES, Entry, read_entries
from cotjax.envs.bfcl.env import MAX_CHARACTERS, TURN_STEPS, BfclEnv
from cotjax.envs.bfcl.figures import answers_of, figure_lines, in_turns, without_last
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import DataError, EnvError, UsageError
from cotjax.formats import normalize_action
from cotjax.rollout.collect import Collecting, collect

WORLD = load_world("bfcl")
# Numbers of the entries that the fast tests play. The back end of 147 adds to a list that an
# argument has brought.
NUMBERS = (10, 39, 147, 167)


@pytest.fixture(scope="module")
def games() -> dict[str, Game]:
    """All entries, by id."""
    return {game.id: game for split in WORLD.splits for game in WORLD.games("", split)}


def entry_of(game: Game) -> Entry:
    return read_entries(Path(game.path))[game.id]


def play(env: BfclEnv, game: Game, actions: list[str]) -> list:
    """The task, and all observations."""
    task, first = env.reset(game)
    return [task, first, *(env.step(action) for action in actions)]


def actions_of(entry: Entry) -> list[str]:
    """The answers, one action a turn."""
    actions = []
    for calls in answers_of(entry):
        actions += [*([action_of(calls)] if calls else []), "done"]
    return actions


def play_expert(game: Game, seed: int = 0, mistakes: float = 0.0):
    """The last observation, and (observation, decision) of each step."""
    agent = WORLD.agent("expert", seed, AgentSettings(game=game, mistakes=mistakes))
    env = WORLD.make_env(60)()
    task, seen = env.reset(game)
    agent.start(task, seen)
    steps = []
    while not seen.done:
        decision = agent.act(seen)
        steps.append((seen, decision))
        seen = env.step(decision.action)
    return seen, steps


# ---- actions


@pytest.mark.parametrize(
    ("action", "calls"),
    [
        ("[]", []),
        (" done ", []),
        ("ls()", [Call("ls", (), {})]),
        ("[ls(a=True), cd('x')]", [Call("ls", (), {"a": True}), Call("cd", ("x",), {})]),
        ("f(-1, [1.5, None], x={'a': (2,)})", [Call("f", (-1, [1.5, None]), {"x": {"a": (2,)}})]),
        (r"f('\d a\nb' 'c')", [Call("f", ("\\d a\nbc",), {})]),
    ],
)
def test_an_action_is_a_list_of_calls(action, calls):
    assert parse_action(action) == calls


_TEXTS = st.text(max_size=20) | st.sampled_from(["a  b", "cd(x)", " \\(", 'it\'s "so"', "\u00a0"])
_NUMBERS = st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9)
_LEAVES = st.none() | st.booleans() | _NUMBERS | _TEXTS
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=30, deadline=None)
@given(st.lists(_VALUES, max_size=2), st.dictionaries(st.sampled_from(["x", "y"]), _VALUES))
def test_a_call_survives_being_written(arguments, keywords):
    """As an action, whose runs of whitespace are lost, and as code for the checker."""
    call = Call("f", tuple(arguments), keywords)
    try:
        assert parse_action(normalize_action(action_of([call]))) == [call]
    except CallError as error:
        assert "nested" in str(error)
        return
    assert parse_action(call.code) == [call]
    inside = call.code.removeprefix("f(").removesuffix(")")
    assert not re.search(r"\w\(", inside), "the checker rewrites whatever looks like a call"


BIG = 100_000
HOSTILE = {
    "empty": "",
    "space": " \t ",
    "100 kB": "x" * BIG,
    "100 kB of text": f"[echo(content='{'x' * BIG}')]",
    "many calls": f"[{', '.join(['pwd()'] * 60)}]",
    "deep": "[" * 90 + "]" * 90,
    "deeper": "(" * 5000 + ")" * 5000,
    "deep argument": f"[mean(numbers={'[' * 40}1{']' * 40})]",
    "minus": f"[add(a={'-' * 9000}1, b=1)]",
    "attributes": f"[pwd(){'.a' * 5000}]",
    "control characters": "[cat(file_name=\x00\x1b[2J\x07)]",
    "zero": "[cat(file_name='\x00')]",
    "surrogate": "[cat(file_name='\ud800')]",
    "import": "[cat(file_name=__import__('os').system('touch marker'))]",
    "import alone": "__import__('os').system('touch marker')",
    "open": "[cat(file_name=open('marker', 'w'))]",
    "exec": "exec(\"open('marker', 'w')\")",
    "lambda": "[(lambda: open('marker', 'w'))()]",
    "comprehension": "[pwd() for _ in open('marker', 'w')]",
    "f-string": "[cat(file_name=f'{open(\"marker\", \"w\")}')]",
    "walrus": "[cat(file_name=(x := 1))]",
    "unpacking": "[cat(**{'file_name': 'x'})]",
    "starred": "[cat(*['x'])]",
    "twice": "[cat(file_name='x', file_name='y')]",
    "set": "[mean(numbers={1, 2})]",
    "bytes": "[cat(file_name=b'x')]",
    "complex": "[add(a=1j, b=2)]",
    "infinity": "[add(a=1e999, b=2)]",
    "hexadecimal": f"[add(a=0x{'f' * 9000}, b=2)]",
    "digits": f"[add(a={'9' * 9000}, b=2)]",
    "power": "[power(base=9, exponent=999999999)]",
    "power by position": "[power(9, 999999999)]",
    "precision": "[square_root(number=2, precision=999999999)]",
    "statement": "import os; os.system('touch marker')",
    "shell": "; touch marker # $(touch marker) `touch marker`",
    "shell in a call": "[cat(file_name='$(touch marker); touch marker')]",
    "path": "[cat(file_name='../../../../etc/passwd')]",
    "private": "[_load_scenario(scenario={})]",
    "method": "[GorillaFileSystem.pwd()]",
    "dunder": "[pwd.__globals__]",
    "builtin": "[exit()]",
    "unknown": "[pwd(), fly(to='the moon')]",
    "wrong argument": "[cat(nothing=1)]",
    "wrong type": "[cd(folder=5)]",
    "tags": "</action><|im_end|><action>done",
    "JSON": '{"name": "pwd", "arguments": {}}',
    "other scripts": "[猫(文件='é')] здравствуй",
    "right to left": "[\u202ecat(file_name='x')]",
    "almost done": "done.",
}  # fmt: skip


def test_hostile_actions_are_refused_and_change_nothing(games, tmp_path, monkeypatch):
    """The entry is still won after them."""
    monkeypatch.chdir(tmp_path)
    game = games["multi_turn_base_26"]  # of the file system and of arithmetic
    env, answers = BfclEnv(100), actions_of(entry_of(game))
    hostile = list(HOSTILE)
    for begin in range(0, len(hostile), TURN_STEPS - 2):
        names = hostile[begin : begin + TURN_STEPS - 2]
        _, _, *seen, last = play(env, game, [*(HOSTILE[name] for name in names), *answers])
        for name, refused in zip(names, seen, strict=False):
            assert not refused.accepted and not refused.done, name
            assert refused.text.startswith(("Refused: ", "cat: ", "cd: ")), name
            assert len(refused.text) < 400, name
        assert last.won, names
    assert not list(tmp_path.iterdir()), "something was written outside the environment"


def test_a_copy_of_a_directory_into_itself_ends_the_episode(games):
    """Walks of the tree, such as the checker's, would not end."""
    game = games["multi_turn_base_26"]
    env = BfclEnv(100)
    loop = ["[mkdir(dir_name='a'), cp(source='a', destination='a')]"]
    *_, last = play(env, game, loop)
    assert last.done and not last.won and "too large" in last.text
    doubled = ["[mkdir(dir_name='a0')]"]
    for n in range(15):
        doubled += [f"[cp(source='a{n}', destination='b'), mv(source='b', destination='a{n}')]"]
        doubled += [f"[cp(source='a{n}', destination='a{n + 1}')]", "done"]
    assert env.reset(game)
    for action in doubled:
        seen = env.step(action)
        if seen.done:
            break
    assert seen.done and not seen.won
    deep = ", ".join(f"mkdir(dir_name='d{n}'), cd(folder='d{n}')" for n in range(25))
    *_, last = play(env, game, [f"[{deep}]"] * 3)
    assert last.done and "too large" in last.text


def test_results_are_cut(games):
    env = BfclEnv(100)
    game = games["multi_turn_long_context_20"]
    calls = ", ".join(["cd(folder='documents')"] + ["cat(file_name='file2.txt')"] * 49)
    *_, seen = play(env, game, [f"[{calls}]"])
    assert MAX_CHARACTERS < len(seen.text) < MAX_CHARACTERS + 100
    assert seen.text.endswith("characters more)")


# ---- episodes


def test_a_second_play_begins_afresh(games):
    """Cards of long_context and default arguments are globals of the package's modules."""
    env, other = BfclEnv(100), BfclEnv(100)
    entry = entry_of(games["multi_turn_long_context_180"])
    token = entry.raw["initial_config"]["TravelAPI"]["access_token"]
    card = "1234567812345678"  # one of the cards that all entries of long_context share
    balance = action_of([Call("get_credit_card_balance", (token, card), {})])
    flight = Call("book_flight", (token, card, "2026-10-12", "LAX", "JFK", "economy"), {})
    travel = [
        action_of([Call("set_budget_limit", (token, 100.0), {})]),
        *(balance, action_of([flight]), balance, "done"),
    ]
    tweet = "[authenticate_twitter(username='{username}', password='{password}')]"
    account = entry_of(games["multi_turn_base_0"]).raw["initial_config"]["TwitterAPI"]
    posts = [
        tweet.format(**account),
        "[post_tweet(content='a')]",
        "[mention(tweet_id=3, mentioned_usernames=['@b'])]",
        "[post_tweet(content='c'), get_tweet(tweet_id=4)]",
        "[mv(source='document', destination='moved'), ls()]",
    ]
    for id_, actions in (("multi_turn_long_context_180", travel), ("multi_turn_base_0", posts)):
        first = play(env, games[id_], actions)
        assert all(seen.accepted for seen in first[1:]), first
        assert play(env, games[id_], actions) == first
        assert play(other, games[id_], actions) == first


def test_an_episode_leaves_nothing_of_the_package_behind(games):
    """Each imports the package's modules anew. None of them waits for the garbage collector."""

    def functions() -> int:
        found = [each for each in gc.get_objects() if type(each) is FunctionType]
        return sum("/bfcl_eval/eval_checker/" in each.__code__.co_filename for each in found)

    env, ids = BfclEnv(100), ("multi_turn_long_context_180", "multi_turn_base_26")
    gc.collect()
    before = functions()
    gc.disable()
    try:
        for id_ in ids:
            *_, last = play(env, games[id_], actions_of(entry_of(games[id_])))
            assert last.won and functions() > before, "those of the episode"
        env.close()
        assert functions() == before
    finally:
        gc.enable()
    _, first = env.reset(games[ids[1]])
    assert first.accepted, "a closed environment plays again"


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_the_checker_accepts_the_answers_and_nothing_less(games, task_type):
    env = BfclEnv(100)
    for number in NUMBERS:
        game = games[f"multi_turn_{task_type}_{number}"]
        entry = entry_of(game)
        assert not accepts(entry, in_turns(without_last(answers_of(entry))))
        *_, last = play(env, game, ["done"] * len(entry.answers))
        assert last.done and not last.won and last.score < 1
        # Last, because a checker that remembers what was played before would reject it.
        *_, last = play(env, game, actions_of(entry))
        assert last.won and last.done and last.score == 1


def test_the_score_is_the_share_of_turns_before_the_first_rejected(games):
    entry = entry_of(games["multi_turn_base_0"])
    actions = actions_of(entry)
    seen = play(BfclEnv(100), games[entry.id], actions)[1:]
    assert [each.score for each in seen] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]
    assert [each.won for each in seen] == [False] * 8 + [True]
    seen = play(BfclEnv(100), games[entry.id], [*actions[:2], "done", *actions[4:]])[1:]
    assert [each.score for each in seen] == [0, 0, *[0.25] * 6] and not seen[-1].won


def test_a_function_that_is_missing_arrives_in_its_turn(games):
    entry = entry_of(games["multi_turn_miss_func_2"])
    assert entry.missing == {"cp": 4, "cat": 4}
    seen = play(BfclEnv(100), games[entry.id], actions_of(entry))[1:]
    begins = [0] + [at for at, each in enumerate(seen) if "User: " in each.text and at]
    for turn, at in enumerate(begins):
        for name in entry.missing:
            assert (f"\n{name}(" in f"\n{seen[at].text}") == (turn == 4), (turn, name)
    for name, description in entry.functions.items():
        assert (description in seen[0].text) == (name not in entry.missing)
    assert seen[0].text.endswith(f"\nUser: {entry.requests[0]}")
    assert seen[begins[4]].text.endswith("What about now?")


def test_an_episode_ends_after_its_steps_and_a_turn_after_its_own(games):
    env, game = BfclEnv(3), games["multi_turn_base_0"]
    seen = play(env, game, ["[pwd()]", "nonsense", "[pwd()]"])[1:]
    assert [each.done for each in seen] == [False, False, False, True]
    assert [each.accepted for each in seen] == [True, True, False, True]
    with pytest.raises(EnvError, match=r"multi_turn_base_0, step 4: the episode is over"):
        env.step("done")
    seen = play(BfclEnv(100), game, ["[pwd()]"] * (TURN_STEPS + 1))[1:]
    assert [each.done for each in seen] == [False] * (TURN_STEPS + 1) + [True]
    env.close()
    with pytest.raises(EnvError, match="no game to step"):
        env.step("done")
    with pytest.raises(UsageError, match="max_steps"):
        BfclEnv(0)


def test_the_order_of_sets_does_not_show(games):
    """It differs between processes, and a replay must have the same observations."""
    entry = entry_of(games["multi_turn_base_180"])
    token = entry.raw["initial_config"]["TravelAPI"]["access_token"]
    card = next(iter(entry.raw["initial_config"]["TravelAPI"]["credit_card_list"]))
    book = Call("book_flight", (token, card, "2026-10-12", "LAX", "JFK", "bad"), {})
    *_, seen = play(BfclEnv(9), games[entry.id], [action_of([book])])
    assert "{'business', 'economy', 'first'}" in seen.text and not seen.accepted


# ---- the expert


@pytest.mark.parametrize("mistakes", [0.0, 0.4])
def test_the_expert_wins_and_recovers_from_mistakes(games, mistakes):
    wrong = 0
    for number in NUMBERS:
        for task_type in TASK_TYPES if not mistakes else ("base",):
            last, steps = play_expert(games[f"multi_turn_{task_type}_{number}"], number, mistakes)
            assert last.won, (task_type, number)
            results = [seen for seen, _ in steps[1:]] + [last]
            for (_, decision), result in zip(steps, results, strict=True):
                assert (decision.thought is None) == decision.mistake
                if decision.mistake:
                    assert not result.accepted and "missing" in result.text
                    wrong += 1
    assert bool(wrong) == bool(mistakes)


def test_thoughts_say_what_the_prompt_shows(games):
    """A value that a thought finds in the request, or in a result, was shown there."""
    found = Counter()
    for number in NUMBERS:
        _, steps = play_expert(games[f"multi_turn_miss_func_{number}"])
        shown = ""
        for seen, decision in steps:
            shown += seen.text
            for call in parse_action(decision.action)[:1]:
                for names, where in re.findall(
                    r"((?:\w+ and )*\w+) (?:is|are) in (the request|what \w+ gave)",
                    decision.thought,
                ):
                    for name in names.split(" and "):
                        value = call.keywords.get(name, "")
                        parts = value if isinstance(value, list) else [value]
                        assert all(str(part).lower() in shown.lower() for part in parts)
                        found[where.partition(" ")[0]] += 1
            if decision.action == "done":
                assert decision.thought.endswith("so I am done.")
            else:
                assert f"So I call {decision.action}" in decision.thought or (
                    decision.thought.endswith(f"So I call {call.name}.")
                )
    assert found["the"] > 5 and found["what"] > 2


def test_thoughts_do_not_depend_on_what_comes_later(games):
    """With other answers to later turns, the thoughts of earlier ones are the same."""
    entry = entry_of(games["multi_turn_base_10"])
    cut = replace(entry, answers=(entry.answers[0], *[()] * (len(entry.answers) - 1)))
    texts = []
    for each in (entry, cut):
        agent = WORLD.agent("expert", 0, AgentSettings(game=games[entry.id]))
        agent._entry = each
        env = BfclEnv(60)
        task, seen = env.reset(games[entry.id])
        agent.start(task, seen)
        texts.append([])
        while agent._turn < 1:
            decision = agent.act(seen)
            texts[-1].append(decision)
            seen = env.step(decision.action)
    assert texts[0][:-1] == texts[1][:-1] and len(texts[0]) > 2


def test_collecting_plays_the_expert_of_each_game(games, tmp_path):
    chosen = [games["multi_turn_base_40"], games["multi_turn_base_43"]]  # one first request
    out = tmp_path / "expert.jsonl"
    summary = collect(WORLD, chosen, out, Collecting("expert", seed=0))
    assert summary.won == summary.kept == 2
    first, second = read_trajectories(out)
    assert first.success and first.reward == 1 and first.environment == "bfcl"
    assert [step.action for step in first.steps] != [step.action for step in second.steps]
    with pytest.raises(UsageError, match=r"AgentSettings\.game"):
        WORLD.agent("expert", 0, AgentSettings())


# ---- games


def test_entries_of_one_scenario_are_in_one_split(games):
    assert len(games) == 800
    numbers = {split: set() for split in WORLD.splits}
    for game in games.values():
        numbers[game.split].add(entries_module.number_of(game.id))
    assert not numbers["train"] & numbers["test"]
    assert (len(numbers["train"]), len(numbers["test"])) == (133, 67)
    texts = {"train": set(), "test": set()}
    for game in games.values():
        entry = entry_of(game)
        config = entry.raw["initial_config"]
        texts[game.split] |= {
            json.dumps(config, sort_keys=True) if len(str(config)) > 100 else game.id,
            json.dumps(entry.answers),
            entry.requests[0],
        }
    assert not texts["train"] & texts["test"]


def test_games_are_sorted_and_stable():
    test = WORLD.games("", "test")
    assert [game.id for game in test] == sorted(game.id for game in test)
    assert test == WORLD.games("", "test")
    assert Counter(game.task_type for game in test) == dict.fromkeys(TASK_TYPES, 67)
    first = [entries_module.number_of(game.id) for game in test[:6]]
    assert first == [0, 1, 100, 102, 103, 104]
    with pytest.raises(UsageError, match="no split 'valid'; there are train and test"):
        WORLD.games("", "valid")


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(entries_module, "find_spec", lambda name: None)
    for ask in (lambda: WORLD.games("", "train"), WORLD.make_env(3)):
        with pytest.raises(UsageError, match=r"^BFCL is not installed: pip install --no-deps \S+"):
            ask()


def test_a_package_that_it_needs_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    prepare.cache_clear()
    with pytest.raises(UsageError, match=r"^BFCL is not installed: pip install .* \(.*mpmath"):
        BfclEnv(3)
    monkeypatch.undo()
    BfclEnv(3)


def test_broken_data_is_named(games, tmp_path):
    with pytest.raises(UsageError, match="0 files"):
        WORLD.games(tmp_path, "train")
    source = Path(games["multi_turn_base_0"].path)
    (tmp_path / "possible_answer").mkdir()
    for text, message in (
        ("{", rf"{source.name}:1: not JSON"),
        ("[]", rf"{source.name}:1: not a JSON object"),
        ('{"id": "multi_turn_base_0"}', "entry 'multi_turn_base_0' is not one"),
    ):
        file = tmp_path / source.name
        file.write_text(text)
        answers = source.parent / "possible_answer" / source.name
        (tmp_path / "possible_answer" / source.name).write_text(answers.read_text())
        read_entries.cache_clear()
        with pytest.raises(DataError, match=message):
            read_entries(file)
    with pytest.raises(DataError, match="no entry 'x'"):
        BfclEnv(3).reset(replace(games["multi_turn_base_0"], id="x"))


def test_figures_are_of_all_entries_of_the_folder(games, tmp_path):
    """Of a folder with the first two entries of each task type."""
    source = Path(games["multi_turn_base_0"].path).parent
    (tmp_path / "multi_turn_func_doc").symlink_to(source / "multi_turn_func_doc")
    (tmp_path / "possible_answer").mkdir()
    for file in source.glob("BFCL_v*_multi_turn_*.json"):
        for name in (file.name, f"possible_answer/{file.name}"):
            first = (source / name).read_text().splitlines(keepends=True)[:2]
            (tmp_path / name).write_text("".join(first))
    assert list(figure_lines(tmp_path)) == [
        f"{task_type}: answers accepted by the checker 2 of 2, without their last call rejected 2"
        for task_type in TASK_TYPES
    ]


# ---- all entries


@pytest.mark.slow
def test_the_checker_agrees_with_the_answers_of_all_entries(games):
    """Answers are accepted, those without their last call seldom, nothing never; experts win."""
    outcomes = Counter()
    for game in games.values():
        entry = entry_of(game)
        answers = answers_of(entry)
        outcomes["answers"] += accepts(entry, in_turns(answers))
        outcomes["without the last call"] += accepts(entry, in_turns(without_last(answers)))
        outcomes["nothing"] += accepts(entry, [[] for _ in answers])
    assert outcomes["answers"] == len(games) == 800
    assert outcomes["without the last call"] <= 5
    assert outcomes["nothing"] == 0
    sample = random.Random(0).sample(sorted(games), 100)
    assert sum(play_expert(games[id_])[0].won for id_ in sample) == len(sample)
