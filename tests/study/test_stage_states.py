"""The expert's states: their tokens are those of training, and an expert is right in them."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.rollouts import Generation

from cotjax.data.codec import Codec
from cotjax.data.growing import lesson_example
from cotjax.data.growing_text import TOKENS
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.diagnostics.aligned import rates, read_aligned
from cotjax.envs.search_qa.growing import SearchPieces
from cotjax.envs.worlds import load_world
from cotjax.formats import CHATML, Prompt
from cotjax.formats.search import pieces
from cotjax.probes import groups
from cotjax.probes.asking import Programs
from cotjax.probes.probe import Weights
from cotjax.rollout.elicitation import Elicitation
from cotjax.study.stage_states import Measuring, expert_states, measure_states, state_tokens

WORLD = load_world("cotjax.envs.search_qa:SMALL")
PROMPT = Prompt(task_text="Question: {task}", growing=SearchPieces())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The test games, the expert's texts of them, a codec of their words, and their states."""
    root = tmp_path_factory.mktemp("games")
    wanted = {"train": {"one_hop": 2}, "test": {"one_hop": 8, "two_hops": 8}}
    WORLD.make_games(root, wanted, 0)
    games = {game.id: game for game in WORLD.games(root, "test")}
    lessons = WORLD.lessons(root, 0).written(list(games.values()))
    texts = [text for x in lessons for text in (x.task, x.observation, x.text)]
    words = [*WORLD.words(), *texts, "Question: user assistant"]
    codec = Codec(build_word_tokenizer(words, CHATML, TOKENS), CHATML, PROMPT)
    return games, lessons, codec, expert_states(codec, lessons, games, 12, 0)


class Scripted:
    """Writes what it is told to in each state, which it knows by its tokens.

    searches: it would open a search at once.
    """

    slots, max_length = 4, 2000

    def __init__(self, codec, states, said, searches):
        self._codec, self._searches = codec, searches
        texts = zip(states, said, strict=True)
        self._said = {tuple(state_tokens(codec, x).ids): text for x, text in texts}
        self._prompts = {}

    def reset(self, slots):
        self._prompts = {}

    def extend(self, prompts):
        self._prompts = {slot: tuple(ids) for slot, ids in prompts.items()}

    def score_branches(self, prefixes, branches):
        likely = (-1.0, -2.0) if self._searches else (-2.0, -1.0)
        return {
            slot: [[each] * len(ids) for each, ids in zip(likely, branches[slot], strict=True)]
            for slot in prefixes
        }

    def sample(self, prefixes, *, max_new, seeds, **how):
        found = {}
        for slot, prefix in prefixes.items():
            ids = self._codec.encode(self._said[self._prompts[slot]])
            if prefix:  # behind an opener, without the thought and the opener
                ids = ids[ids.index(prefix[-1]) + 1 :] if prefix[-1] in ids else ids[-1:]
            found[slot] = Generation(ids, [-0.5] * len(ids), True)
        return found


@pytest.fixture(scope="module")
def programs(made):
    codec = made[2]
    model = tiny.model_config(vocab_size=codec.vocab_size)
    return Programs(Weights(model, tiny.params(model), tiny.mesh()), 2, True)


def measuring(codec, policy, programs):
    return Measuring(policy, programs, codec, Elicitation(), WORLD)


def next_piece(lesson, state):
    """What the expert writes next, with the end of the turn behind an answer."""
    rest = lesson.text[len(state.text) :]
    _, results = pieces(rest)[0]
    return rest[: rest.index(results)] if results else f"{rest}{CHATML.response_end}"


def test_a_state_has_the_tokens_of_training_and_its_latest_results_apart(made):
    _, lessons, codec, states = made
    texts = {lesson.id: lesson for lesson in lessons}
    assert sum(state.searches for state in states) == 6 == len(states) // 2
    assert any(state.number == 2 for state in expert_states(codec, lessons, made[0], 99, 0))
    for state in states:
        tokens = state_tokens(codec, state)
        whole = lesson_example(codec, texts[state.game.id]).ids.tolist()
        assert whole[: len(tokens.ids)] == tokens.ids
        latest = codec.decode(tokens.only(groups.OBSERVATION))
        assert codec.decode(codec.encode_plain(state.task, "task")) in codec.decode(
            tokens.only(groups.TASK)
        )
        if state.number:  # else it is what the environment says first
            assert latest.count("result 1") == 1 and latest.count("<search_result>") == 1
        assert codec.decode(tokens.only(groups.HISTORY)).count("<search_result>") == max(
            0, state.number - 1
        )


def test_an_expert_is_right_and_good_and_a_search_at_once_is_not_where_it_answers(
    made, programs, tmp_path
):
    _, lessons, codec, states = made
    texts = {lesson.id: lesson for lesson in lessons}
    said = [next_piece(texts[state.game.id], state) for state in states]
    path: Path = tmp_path / "aligned" / "sft2-4.jsonl"
    for number, searches in enumerate((True, False)):
        own = measuring(codec, Scripted(codec, states, said, searches), programs)
        measure_states(path, f"hash {number}", lambda own=own: own, states, lambda *done: None)
        digest, found = read_aligned(path)
        assert digest == f"hash {number}" and len(found) == len(states)
        for searching in (True, False):
            figures = rates([each for each in found if each.searches == searching])
            cot = [figures[name].value for name in ("d1_cot", "kind_cot")]
            assert cot == [1, 1] and all(x.cot.good for x in found)
            # At once it opens what it is told to: right in one half of the states.
            assert figures["kind_prompt"].value == figures["d2"].value == (searching == searches)
            assert figures["d4_cot"].value == (searching != searches)
        for each in found:
            for share in each.shares.values():
                assert sum(share.values()) == pytest.approx(1, abs=1e-4)
            assert {"scaffold", "task", "reasoning"} <= each.shares["attention"].keys()

    def never():
        raise AssertionError("measured already")

    measure_states(path, digest, never, states, lambda *done: None)


def test_programs_are_compiled_once_and_have_the_weights_of_each_checkpoint(made, programs):
    _, lessons, codec, states = made
    model = programs.weights.model
    texts = {lesson.id: lesson for lesson in lessons}
    said = [next_piece(texts[state.game.id], state) for state in states[:2]]
    one = measuring(codec, Scripted(codec, states[:2], said, True), programs)
    first = one.aligned(states[:2])
    other = one.programs.of(Weights(model, tiny.params(model), tiny.mesh()))
    assert other._compiled is one.programs._compiled and other._compiled
    again = Measuring(one.policy, other, codec, Elicitation(), WORLD).aligned(states[:2])
    assert again == first
    doubled = jax.tree.map(lambda x: 2 * x, tiny.params(model))
    moved = Measuring(
        one.policy,
        one.programs.of(Weights(model, doubled, tiny.mesh())),
        codec,
        Elicitation(),
        WORLD,
    ).aligned(states[:2])
    ours, theirs = (
        np.array([x.shares["attention"]["reasoning"] for x in each]) for each in (first, moved)
    )
    assert not np.allclose(ours, theirs)
