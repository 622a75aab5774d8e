from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from cotjax.data.codec import Codec
from cotjax.data.tokens import TREES, Layout, trajectory_examples
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.errors import CotjaxError, DataError, UsageError
from cotjax.formats import CHATML
from cotjax.masking import Role


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def _one(codec, trajectory, form="cot", max_length=1000, layout=TREES):
    (example,) = trajectory_examples(codec, trajectory, form, max_length, layout)
    return example


def _text(codec, example, role):
    return codec.decode(example.ids[example.roles == role])


def test_roles_of_a_worked_example(codec):
    example = _one(codec, tiny.trajectory(steps=1))
    assert (
        _text(codec, example, Role.REASONING)
        == "<think> i need a plate. next i open cabinet 1. </think>"
    )
    assert _text(codec, example, Role.ACTION_OPEN) == "<action>"
    assert _text(codec, example, Role.ACTION) == "open cabinet 1"
    assert _text(codec, example, Role.ACTION_CLOSE) == "</action>"
    assert _text(codec, example, Role.END) == "<|im_end|>"
    assert (
        _text(codec, example, Role.OBSERVATION)
        == "You see a cabinet 1, a cabinet 2, and a fridge 1."
    )
    assert set(example.roles) == set(Role) - {Role.PAD, Role.ANSWER}


def test_the_trunk_is_the_prompt_that_a_rollout_builds(codec):
    """Training and playing see the same ids: the trunk up to branch j is the prompt of step j."""
    trajectory = tiny.trajectory(steps=4)
    example = _one(codec, trajectory)
    prompt = codec.first_prompt(trajectory.task, trajectory.steps[0].observation)
    for number, step in enumerate(trajectory.steps):
        if number:
            prompt += codec.next_prompt(trajectory.steps[number - 1].action, step.observation)
        start = int(np.flatnonzero(example.branches == number + 1)[0])
        trunk = example.ids[:start][example.branches[:start] == 0]
        np.testing.assert_array_equal(trunk, prompt)
        # A branch's positions go on where its prompt ends, and so do the trunk's behind it.
        assert example.positions[start] == len(prompt)


def test_history_holds_no_reasoning(codec):
    example = _one(codec, tiny.trajectory(steps=3))
    trunk = codec.decode(example.ids[example.branches == 0])
    assert "<think>" not in trunk and "need" not in trunk
    assert "<action> open cabinet 1 </action>" in trunk


def test_the_direct_form_trains_the_trunk(codec):
    example = _one(codec, tiny.trajectory(steps=2), form="direct")
    assert not example.branches.any()
    assert _text(codec, example, Role.ACTION) == "open cabinet 1 open cabinet 2"
    assert _text(codec, example, Role.REASONING) == ""


@pytest.mark.parametrize("form", ["cot", "direct"])
def test_a_step_that_is_not_trained_is_history_alone(codec, form):
    whole = tiny.trajectory(steps=3)
    slip = replace(whole.steps[1], thought=None, provenance=None, trained=False)
    example = _one(codec, replace(whole, steps=(whole.steps[0], slip, whole.steps[2])), form)
    full = _one(codec, whole, form)
    assert _text(codec, example, Role.ACTION).split("open")[1:] == [" cabinet 1 ", " cabinet 3"]
    np.testing.assert_array_equal(example.ids[example.branches == 0], full.ids[full.branches == 0])
    if form == "cot":
        assert sorted(set(example.branches)) == [0, 1, 3], "a branch's number is still its step's"


def test_an_episode_that_ends_with_a_slip_loses_it_and_one_of_slips_alone_trains_nothing(codec):
    whole = tiny.trajectory(steps=2)
    slips = [replace(step, thought=None, provenance=None, trained=False) for step in whole.steps]
    example = _one(codec, replace(whole, steps=(whole.steps[0], slips[1])))
    np.testing.assert_array_equal(
        example.ids, _one(codec, replace(whole, steps=whole.steps[:1])).ids
    )
    assert list(trajectory_examples(codec, replace(whole, steps=tuple(slips)), "cot", 1000)) == []


@pytest.mark.parametrize("max_length", [60, 90, 150, 400])
def test_a_long_trajectory_is_cut_into_trees_that_lose_no_step(codec, max_length):
    trajectory = tiny.trajectory(steps=6)
    whole = _one(codec, trajectory)
    assert len(whole.ids) > 200
    try:
        trees = list(trajectory_examples(codec, trajectory, "cot", max_length))
    except DataError:
        assert max_length == 60  # not even the first response fits
        return
    seen = {}
    for tree in trees:
        assert len(tree.ids) <= max_length
        for branch in range(1, tree.branches.max() + 1):
            start = int(np.flatnonzero(tree.branches == branch)[0])
            prompt = tree.ids[:start][tree.branches[:start] == 0]
            seen[tree.first_step + branch - 1] = (
                prompt.tolist(),
                tree.ids[tree.branches == branch].tolist(),
            )
        assert tree.branches[-1] == tree.branches.max(), "nothing follows the last response"
    for step, (prompt, response) in seen.items():
        start = int(np.flatnonzero(whole.branches == step + 1)[0])
        assert prompt == whole.ids[:start][whole.branches[:start] == 0].tolist()
        assert response == whole.ids[whole.branches == step + 1].tolist()
    assert sorted(seen) == list(range(len(seen))) and (max_length < 400 or len(seen) == 6)


@pytest.mark.parametrize(
    ("form", "layout"),
    [("cot", TREES), ("direct", TREES), ("cot", Layout("step"))],
    ids=["trees", "line", "steps"],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_just_as_long_as_an_example_may_be_is_one_example(codec, form, layout, steps):
    trajectory = tiny.trajectory(steps=steps)
    *_, longest = trajectory_examples(codec, trajectory, form, 1000, layout)
    *_, fits = trajectory_examples(codec, trajectory, form, len(longest.ids), layout)
    assert fits.ids.tolist() == longest.ids.tolist()
    assert all(
        example.ids.tolist() != longest.ids.tolist()
        for example in trajectory_examples(codec, trajectory, form, len(longest.ids) - 1, layout)
    )


@pytest.mark.parametrize("history", [0, 1, 3])
@pytest.mark.parametrize("form", ["cot", "direct"])
def test_a_step_by_itself_has_the_prompt_that_a_rollout_with_its_history_builds(
    codec, form, history
):
    trajectory = tiny.trajectory(steps=5)
    examples = list(trajectory_examples(codec, trajectory, form, 1000, Layout("step", history)))
    assert [example.first_step for example in examples] == list(range(5))
    for number, example in enumerate(examples):
        start = max(0, number - history) if history else 0
        prompt = codec.first_prompt(trajectory.task, trajectory.steps[start].observation)
        for past in range(start, number):
            prompt += codec.next_prompt(
                trajectory.steps[past].action, trajectory.steps[past + 1].observation
            )
        assert example.ids[: len(prompt)].tolist() == prompt
        assert set(example.roles[: len(prompt)]) == {Role.PROMPT, Role.OBSERVATION}, (
            "past responses are nobody's to train on again"
        )
        assert not example.branches.any() and example.positions.tolist() == list(
            range(len(example.ids))
        )
        whole = _one(codec, replace(trajectory, steps=trajectory.steps[: number + 1]), form)
        response = example.roles > Role.OBSERVATION
        own = (
            whole.branches == number + 1
            if form == "cot"
            else np.arange(len(whole.ids)) >= len(whole.ids) - response.sum()
        )
        assert example.ids[response].tolist() == whole.ids[own].tolist()


def test_past_turns_may_keep_their_thoughts(codec):
    trajectory = tiny.trajectory(steps=3)
    line = _one(codec, trajectory, layout=Layout(past_thoughts=True))
    assert not line.branches.any() and line.positions.tolist() == list(range(len(line.ids)))
    assert (
        codec.decode(line.ids).count("<think>") == 3
        and _text(codec, line, Role.REASONING).count("i need a plate.") == 3
    )
    *_, last = trajectory_examples(
        codec, trajectory, "cot", 1000, Layout("step", past_thoughts=True)
    )
    assert last.ids.tolist() == line.ids.tolist()
    assert _text(codec, last, Role.REASONING).count("i need a plate.") == 1
    *_, short = trajectory_examples(
        codec, trajectory, "cot", 1000, Layout("step", 1, past_thoughts=True)
    )
    assert codec.decode(short.ids).count("<think>") == 2


def test_steps_that_are_not_trained_or_do_not_fit_are_left_out(codec):
    whole = tiny.trajectory(steps=4)
    slip = replace(whole.steps[1], thought=None, provenance=None, trained=False)
    played = replace(whole, steps=(whole.steps[0], slip, *whole.steps[2:]))
    assert [
        example.first_step
        for example in trajectory_examples(codec, played, "cot", 1000, Layout("step"))
    ] == [0, 2, 3]
    lengths = [
        len(example.ids)
        for example in trajectory_examples(codec, whole, "cot", 1000, Layout("step"))
    ]
    assert [
        e.first_step for e in trajectory_examples(codec, whole, "cot", lengths[2], Layout("step"))
    ] == [0, 1, 2]
    long = replace(
        whole,
        steps=(*whole.steps[:2], replace(whole.steps[2], thought="look " * 200), whole.steps[3]),
    )
    assert [
        e.first_step for e in trajectory_examples(codec, long, "cot", lengths[2], Layout("step", 1))
    ] == [0, 1, 3]


@pytest.mark.parametrize("broken", [("turn",), ("step", -1), ("trajectory", 2)])
def test_a_layout_that_cannot_be_is_refused(broken):
    with pytest.raises(UsageError):
        Layout(*broken)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"observation": "You see a dragon."}, "dragon"),
        ({"thought": "i write </think> here"}, "</think>"),
    ],
)
def test_a_word_or_tag_that_would_corrupt_the_ids_is_refused(codec, change, word):
    trajectory = tiny.trajectory(steps=2)
    broken = replace(
        trajectory, steps=(trajectory.steps[0], replace(trajectory.steps[1], **change))
    )
    with pytest.raises(DataError, match=f"'t0', step 1.*{word}"):
        list(trajectory_examples(codec, broken, "cot", 500))


def test_a_step_without_thought_cannot_train_reasoning(codec):
    trajectory = tiny.trajectory(steps=1)
    silent = replace(
        trajectory, steps=(replace(trajectory.steps[0], thought=None, provenance=None),)
    )
    with pytest.raises(DataError, match="no thought"):
        list(trajectory_examples(codec, silent, "cot", 500, no_thought="error"))
    assert list(trajectory_examples(codec, silent, "cot", 500)) == []
    assert len(_one(codec, silent, form="direct").ids) > 0


def test_an_unknown_form_template_or_folder_is_refused(codec, tmp_path):
    with pytest.raises(UsageError, match="unknown form"):
        list(trajectory_examples(codec, tiny.trajectory(), "both", 500))
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        Codec.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CotjaxError, match="not a tokenizer"):
        Codec.load(tmp_path)


def test_actions_survive_decoding(codec):
    for action in ("open cabinet 1", "look"):
        assert codec.decode(codec.encode(action)) == action


def test_the_tokenizer_does_not_depend_on_the_order_of_texts():
    forward = build_word_tokenizer(tiny.TINY_WORDS).to_str()
    assert forward == build_word_tokenizer(reversed(tiny.TINY_WORDS)).to_str()


def test_transformers_reads_the_same_tokenizer(codec, tmp_path):
    from transformers import AutoTokenizer

    from cotjax.data.word_tokenizer import save_tokenizer

    save_tokenizer(build_word_tokenizer(tiny.TINY_WORDS), tmp_path)
    response = f"<think> i look. </think><action>look</action>{CHATML.response_end}"
    text = f"{CHATML.turn_open}You see a fridge 1.{CHATML.response_open}{response}"
    assert AutoTokenizer.from_pretrained(tmp_path).encode(
        text, add_special_tokens=False
    ) == codec.encode(text)
