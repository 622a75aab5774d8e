"""What is measured in the expert's states: planted ones give figures that are known before."""

import pytest

from cotjax.diagnostics.aligned import (
    ATTENTION,
    GRADIENT,
    UNIFORM,
    Aligned,
    Side,
    rates,
    read_aligned,
    write_aligned,
)
from cotjax.errors import DataError

RIGHT = Side("answer: Ma Ti", same=True, kind=True, good=True)
OTHER = Side("answer: Ko Po", same=False, kind=True, good=False)
INVALID = Side("", same=False, kind=False, good=False)
SHARE = {"task": 0.25, "observation": 0.25, "reasoning": 0.375, "action": 0.125}
SHARES = {ATTENTION: SHARE, GRADIENT: {"reasoning": 1.0}, UNIFORM: {"scaffold": 1.0}}


def state(game, number, cot, prompt, shares):
    agree = cot.action == prompt.action != ""
    return Aligned(game, number, False, "answer: Ma Ti", cot, prompt, agree, shares)


STATES = [
    state("a", 0, RIGHT, RIGHT, SHARES),
    state("a", 1, RIGHT, OTHER, SHARES),
    state("b", 0, INVALID, RIGHT, {}),
    state("c", 0, RIGHT, INVALID, SHARES),
]


def test_figures_are_shares_of_the_states():
    found = {name: each.value for name, each in rates(STATES).items()}
    assert found["d1_cot"] == pytest.approx(3 / 4) and found["d1_prompt"] == pytest.approx(2 / 4)
    assert found["d1_gap"] == pytest.approx(1 / 4)
    assert found["kind_cot"] == found["kind_prompt"] == pytest.approx(3 / 4)
    assert found["d2"] == pytest.approx(1 / 4)
    assert found["d4_cot"] == pytest.approx(2 / 4) and found["d4_prompt"] == pytest.approx(1 / 4)
    # A malformed action has no shares, and counts in no mean of them.
    assert found["attention_prompt"] == pytest.approx(0.5)
    assert found["attention_results"] == pytest.approx(0.25)
    assert found["attention_reasoning"] == pytest.approx(0.375)
    assert found["gradient_reasoning"] == found["uniform_prompt"] == pytest.approx(1)
    assert rates(STATES)["attention_prompt"].n == 3


def test_states_of_a_question_count_as_one_where_they_agree():
    one = rates([state("a", n, RIGHT, OTHER, {}) for n in range(8)])["d1_cot"]
    eight = rates([state(f"g{n}", 0, RIGHT, OTHER, {}) for n in range(8)])["d1_cot"]
    assert one.games == 1 and eight.games == 8 and one.low < eight.low
    assert not any(each.measured for each in rates([]).values())


def test_what_is_written_is_read_again_and_what_is_cut_is_one_line(tmp_path):
    path = tmp_path / "aligned" / "sft2-4.jsonl"
    assert read_aligned(path) == ("", [])
    write_aligned(path, "hash", STATES)
    assert read_aligned(path) == ("hash", STATES)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"sft2-4.jsonl: not what was measured .*delete it"):
        read_aligned(path)
