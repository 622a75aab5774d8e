"""The layout of one growing text: what is trained on is what is played."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny
from helpers.growing import ScriptPolicy, environments, letter_codec, questions, word_codec
from helpers.rollouts import play_games

from cotjax.data.codec import Codec
from cotjax.data.tokens import Layout, trajectory_examples
from cotjax.data.trajectories import SCRIPTED_BEFORE, Step
from cotjax.endpoint.messages import MessageCodec
from cotjax.errors import DataError, UsageError
from cotjax.formats import CHATML, Example, ExampleStep, Prompt
from cotjax.masking import Role

GROWING = Layout("growing")
STEPS = (
    ("I need the birthplace of Bel Tor.", "search: Bel Tor born"),
    (None, "search: Jor Ko land"),
    ("It is Ma Ti.", "answer: Ma Ti"),
)


def _played(codec, folder):
    """Return the expert's episode as the loop plays it."""
    thoughts, actions = ([step[n] for step in STEPS] for n in (0, 1))
    with environments() as pool:
        (episode,) = play_games(
            codec,
            questions(folder, ("two",)),
            "reference",
            policy=ScriptPolicy(codec),
            environments=pool,
            references={"two": actions},
            thoughts={"two": thoughts},
            kinds=(),
            max_new_tokens=400,
        )
    return episode


def _trajectory(episode):
    steps = tuple(
        Step(turn.observation, thought, action, SCRIPTED_BEFORE, (), trained=thought is not None)
        for turn, (thought, action) in zip(episode.steps, STEPS, strict=True)
    )
    return replace(tiny.trajectory(task=episode.task), steps=steps)


@pytest.mark.parametrize("make", [word_codec, letter_codec])
def test_training_reads_the_ids_that_the_loop_shows(tmp_path, make):
    codec = make()
    episode = _played(codec, tmp_path)
    (example,) = trajectory_examples(codec, _trajectory(episode), "cot", 5000, GROWING)
    shown = [id for turn in episode.steps for id in turn.prompt_ids]
    assert example.ids.tolist() == shown + codec.growing.piece_ids(*STEPS[-1])
    assert example.steps.tolist() == [0, 2] and not example.branches.any()
    roles = example.roles
    shown = [codec.growing.observed_ids(turn.observation) for turn in episode.steps[1:]]
    results = [id for ids in shown for id in ids]
    assert example.ids[roles == Role.OBSERVATION].tolist() == results
    acted = codec.decode(example.ids[np.isin(roles, (Role.ACTION, Role.ANSWER))].tolist())
    assert acted.split() == ["Bel", "Tor", "born", *("Ma", "Ti")]
    assert "Jor Ko land" not in acted, "a step that is not trained on is prompt"
    assert roles[-1] == Role.END
    assert not list(trajectory_examples(codec, _trajectory(episode), "cot", 20, GROWING))


def test_a_codec_and_a_layout_must_be_of_one_kind(tmp_path):
    codec = word_codec()
    turns = Codec(letter_codec()._tokenizer, CHATML)
    trajectory = _trajectory(_played(codec, tmp_path))
    for wrong, layout in ((codec, Layout()), (turns, GROWING)):
        with pytest.raises(UsageError, match=r"data\.layout is"):
            list(trajectory_examples(wrong, trajectory, "cot", 5000, layout))
    with pytest.raises(UsageError, match="keeps its thoughts anyway"):
        Layout("growing", past_thoughts=True)
    with pytest.raises(UsageError, match="needs the layout 'step'"):
        Layout("growing", history=1)
    assert GROWING.playable
    with pytest.raises(UsageError, match="an endpoint's model answers whole messages"):
        MessageCodec(codec.prompt)


@pytest.mark.parametrize(
    "step, words",
    [
        (("I need </think> it", "search: a"), "the thought contains '</think>'"),
        (("I need it", "look around"), "has no place in a growing text"),
        (("I need it", "answer: <begin_search>"), "has no place in a growing text"),
    ],
)
def test_a_step_that_cannot_be_written_is_named(step, words):
    codec = letter_codec()
    steps = (Step("You can search 10 times.", *step, SCRIPTED_BEFORE, ()),)
    trajectory = replace(tiny.trajectory(), steps=steps)
    with pytest.raises(DataError, match=f"trajectory 't0', step 0: .*{words}"):
        list(trajectory_examples(codec, trajectory, "cot", 5000, GROWING))


def test_examples_in_a_prompt_are_growing_texts_too():
    codec = letter_codec()
    shown = ("You can search 10 times.", "<search_result> no result </search_result>")
    steps = tuple(
        ExampleStep(seen, thought, action)
        for seen, (thought, action) in zip(shown, (STEPS[0], STEPS[2]), strict=True)
    )
    growing = codec.prompt.growing
    prompt = Prompt(growing=growing, examples=(Example("e", "g", "Who?", steps),))
    text = codec.decode(Codec(codec._tokenizer, CHATML, prompt).opening)
    assert text.count("<think>") == 1 and text.count("<begin_search>") == 1
    assert "</search_result>\n\nIt is Ma Ti. </think>\n\n\\boxed{Ma Ti}<|im_end|>" in text
