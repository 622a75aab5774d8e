"""`cotjax bench policy`: the tokens of trees and rows, counted; its figures and its refusals."""

import numpy as np
import pytest
from helpers import tiny

from cotjax.bench.policy import savings
from cotjax.cli.main import main
from cotjax.data.tokens import Layout, trajectory_examples


def test_rows_of_steps_have_the_tokens_that_the_step_layout_has(tmp_path):
    codec = tiny.word_codec(tmp_path, tiny.TINY_WORDS)
    trajectories = [tiny.trajectory(name=f"t{n}", steps=1 + n) for n in range(4)]
    trees, rows = (
        [
            example
            for trajectory in trajectories
            for example in trajectory_examples(codec, trajectory, "cot", 4096, layout)
        ]
        for layout in (Layout(), Layout("step"))
    )
    figures = savings(trees)
    assert figures["episodes"] == 4 and figures["steps"] == 10 == len(rows)
    assert figures["tree tokens"] == sum(len(tree.ids) for tree in trees)
    assert figures["row tokens"] == sum(len(row.ids) for row in rows)
    assert figures["saving"] > 1.2
    # An episode in several trees, which repeat the trunk, has the same rows.
    cut = [
        example
        for trajectory in trajectories
        for example in trajectory_examples(codec, trajectory, "cot", max(map(_length, rows)))
    ]
    assert len(cut) > len(trees) and savings(cut)["row tokens"] == figures["row tokens"]
    assert savings(cut)["saving"] < figures["saving"]


def _length(example):
    return len(example.ids)


@pytest.mark.parametrize("option", ["length", "batch", "rounds"])
def test_nothing_is_measured_of_nothing(option, capsys):
    assert main(["bench", "policy", f"--{option}", "0"]) == 2
    assert f"--{option} is 0; it must be at least 1" in capsys.readouterr().err


def test_a_file_of_something_else_is_one_line(tmp_path, capsys):
    file = tmp_path / "step-000001.npz"
    np.savez(file, about=np.zeros(3))
    assert main(["bench", "policy", "--rollouts", str(file)]) == 3
    error = capsys.readouterr().err
    assert "not the rollouts of a step" in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_figures_of_the_policy_step(tmp_path, capsys):
    """Of experts in made games; a busy machine says nothing about the ratio but its order."""
    assert main(["bench", "policy", "--length", "1024", "--batch", "2", "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "one row a step" in printed and "SFT step of the same rows" in printed
