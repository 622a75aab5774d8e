"""Facts that a base knows by itself: what counts as known, and what goes by it."""

import json

import pytest
from helpers.growing import QUESTIONS, ScriptPolicy, word_codec

from cotjax.config import default_config
from cotjax.envs.lessons import Recall
from cotjax.envs.search_qa.env import FIRST
from cotjax.envs.search_qa.library import OWN, load_known
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError, UsageError
from cotjax.rollout.elicitation import Elicitation
from cotjax.runtime.progress import Reporter
from cotjax.study.own_facts import own_lessons, right_answers

WORLD = load_world("cotjax.envs.search_qa:SMALL")
ASKED = {"base": "a", "samples": 5}
END = "<|im_end|>"


class Sometimes(ScriptPolicy):
    """Answers "Jor Ko" four times, then "Ma Ti"; it was given `\\boxed{`."""

    calls = 0

    def sample(self, prefixes, *, max_new, seeds, temperature, **how):
        assert temperature > 0 and len(set(seeds.values())) == len(seeds)
        self.calls += 1
        right = self.calls <= 4
        self.script = {name: (f"{'Jor Ko' if right else 'Ma Ti'} }} {END}",) for name in QUESTIONS}
        return super().sample(prefixes, max_new=max_new, seeds=seeds, temperature=temperature)


def test_right_answers_are_counted_over_samples_that_differ():
    codec = word_codec()
    policy = Sometimes(codec)
    recalls = [
        Recall(name, text, FIRST, answer, True, 9) for name, (text, answer) in QUESTIONS.items()
    ]
    elicitation = Elicitation(max_action_tokens=8)
    right = right_answers(policy, codec, load_world("search_qa"), elicitation, recalls, 5)
    assert right == {"one": 4, "two": 1}


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "games"
    WORLD.make_games(out, {"train": {"one_hop": 40}, "test": {"one_hop": 20}}, 0)
    load_known.cache_clear()
    return out


def test_lessons_and_judges_go_by_what_the_base_knows(folder):
    lessons = WORLD.lessons(folder, 0)
    assert lessons.by_own_facts(ASKED) is None
    before = {x.id: x for x in lessons.recalls()}
    turned = {name for name, each in before.items() if not each.known}
    own = lessons.by_own_facts(ASKED, turned)
    assert all(each.known != before[each.id].known for each in own.recalls())
    for choice in own.choices(20):
        assert choice.searches == before[choice.id.replace("choice", "recall")].known
    # Kept with the questions: found again, and what episodes are judged by.
    again = WORLD.lessons(folder, 0).by_own_facts(ASKED)
    assert again.choices(20) == own.choices(20)
    assert WORLD.lessons(folder, 0).by_own_facts(ASKED | {"base": "b"}) is None
    assert len(load_known(folder)) == len(turned)
    for game in WORLD.games(folder, "test"):
        counts = WORLD.judge_searches(game, *_asked(folder, game), [FIRST], ["answer: nobody"])
        assert counts.oracle == counts.missed and counts.oracle in (0, 1)
    (folder / OWN).write_text('{"asked": {}, "facts": [3]}')
    load_known.cache_clear()
    with pytest.raises(DataError, match=r"known.json: not the facts that a model knows .*delete"):
        load_known(folder)


def _asked(folder, game):
    lines = map(json.loads, (folder / "test.jsonl").read_text().splitlines())
    return [line["question"] for line in lines if line["id"] == game.id]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.base is 'random', which knows nothing"),
        ({"model.base": "models/a"}, "stage 'base' teaches facts"),
    ],
)
def test_a_base_that_is_taught_is_not_asked(tmp_path, changes, message):
    config = default_config("search_qa")
    config.model.base = "random"
    config.autocoa.closed_book = 5
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError) as caught:
        own_lessons(config, tmp_path, None, Reporter())
    assert message in str(caught.value) and "closed_book is 5" in str(caught.value)
