"""Grafted thoughts are written once for a checkpoint, and again for another one."""

from helpers.growing import QUESTIONS, ScriptPolicy, word_codec

from cotjax.diagnostics.grafts import ANCHORED, FOLLOWED, read_grafts
from cotjax.envs.lessons import Choice
from cotjax.envs.search_qa.env import FIRST
from cotjax.rollout.elicitation import Elicitation
from cotjax.study.stage_grafts import measure_grafts

TASK, NEED = QUESTIONS["one"][0], "I need the birthplace of Bel Tor."
SEARCH = " I need its land. <begin_search> Bel Tor born </end_search>"
STATES = " It is Sa Mel."
WAYS = {
    # The policy searches whatever stands before it.
    "one": (f"{SEARCH.strip()}",)
}


def choice(name, searches):
    ways = (SEARCH, STATES) if searches else (STATES, SEARCH)
    return Choice(name, TASK, FIRST, NEED, *ways, searches)


def test_a_checkpoint_is_measured_once(tmp_path):
    codec, made = word_codec(), []

    def policy():
        made.append(ScriptPolicy(codec, WAYS, {"one": TASK}))
        return made[-1]

    choices = [choice(f"c{n}", searches=n % 2 == 0) for n in range(5)]
    path, seen = tmp_path / "grafts" / "sft1-4.jsonl", []
    for checkpoint in ("a", "a", "b"):
        measure_grafts(
            path,
            checkpoint,
            policy,
            codec,
            Elicitation(),
            choices,
            lambda done, total: seen.append((done, total)),
        )
        found = read_grafts(path)
        assert found[0] == checkpoint and [each.id for each in found[1]] == [c.id for c in choices]
        # Told to know a fact that it does not, it searches; told to search, it does.
        outcomes = {each.known: each.outcome for each in found[1]}
        assert outcomes == {False: ANCHORED, True: FOLLOWED}
    assert len(made) == 2 and seen == [(2, 5), (4, 5), (5, 5)] * 2
