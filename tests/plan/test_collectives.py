import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cotjax.plan.collectives import BETWEEN_SLICES, _axes, _groups, collectives


def test_exchange_worked_out_by_hand_is_what_is_found():
    """All-gathers over each axis, sums, and sums in a loop, in programs compiled for eight emulated
    devices.
    """
    here = Path(__file__).parent
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(here.parent), str(here.parent.parent)])
    command = [sys.executable, "-W", "error", here / "on_eight_devices.py"]
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PYTHONPATH": paths}
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=3] {'axis_0'}, x", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=3] {'axis_1'}, x", [[0, 1, 2], [3, 4, 5]]),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}, x",
            [[0, 2], [1, 3], [4, 6], [5, 7]],
        ),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}, x", [[3, 2], [1, 0]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
        ("channel_id=3, x", []),
    ],
)
def test_every_way_to_write_groups(text, groups):
    assert [list(group) for group in _groups(text)] == groups


def test_axes_are_those_along_which_a_group_differs():
    shape = {"data": 2, "fsdp": 3, "tensor": 2}
    numbers = np.arange(12).reshape(2, 3, 2)
    for place, axis in enumerate(shape):
        groups = np.moveaxis(numbers, place, -1).reshape(-1, numbers.shape[place])
        text = (
            "replica_groups={"
            + ",".join("{" + ",".join(map(str, group)) + "}" for group in groups)
            + "}"
        )
        assert list(_axes(text, shape)) == [axis]


# As a TPU's compiler writes it: a loop unrolled by two, whose counter goes up by two; and pieces of
# one overlapped collective.
UNROLLED = """
%body (p: (bf16[8,4], u32[])) -> (bf16[8,4], u32[]) {
  %p = (bf16[8,4]{1,0}, u32[]) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %one = bf16[8,4]{1,0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %two = bf16[8,4]{1,0} collective-permute(%one), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %c = u32[] constant(2)
  %next = u32[] add(%i, %c)
  ROOT %t = (bf16[8,4]{1,0}, u32[]) tuple(%two, %next)
}
%condition (p: (bf16[8,4], u32[])) -> pred[] {
  %p = (bf16[8,4]{1,0}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=1
  %c = u32[] constant(8)
  ROOT %less = pred[] compare(%i, %c), direction=LT
}
%piece.1 (a: bf16[4,4]) -> bf16[8,4] {
  ROOT %g = bf16[8,4]{1,0} all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}
%piece.2 (a: bf16[4,4]) -> bf16[8,4] {
  ROOT %g = bf16[8,4]{1,0} all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}
ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {
  %start = (bf16[8,4]{1,0}, u32[]) tuple(%a, %zero)
  %loop = (bf16[8,4]{1,0}, u32[]) while(%start), condition=%condition, body=%body
  %f = bf16[8,4] fusion(%a), kind=kCustom, calls=%piece.1
  %g = bf16[8,4] fusion(%a), kind=kCustom, calls=%piece.2
  %away = (bf16[8,4]{1,0}, u32[], token[]) send(%f, %after), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %back = (bf16[8,4]{1,0}, u32[], token[]) recv(%after), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""  # noqa: E501


def test_unrolled_loops_and_overlapped_collectives_count_once():
    found = {each.kind: each for each in collectives(UNROLLED, {"data": 1, "fsdp": 2, "tensor": 1})}
    assert found["collective-permute"].count == 8  # four turns of two
    assert found["collective-permute"].bytes == 8 * 8 * 4 * 2
    assert (found["all-gather"].count, found["all-gather"].bytes) == (1, 8 * 4 * 2)


def test_transfers_between_slices_are_told_from_exchange_within():
    (found,) = (
        each
        for each in collectives(UNROLLED, {"data": 1, "fsdp": 2, "tensor": 1})
        if each.axis == BETWEEN_SLICES
    )
    assert (found.kind, found.count) == ("all-reduce", 1)
    assert found.bytes == pytest.approx(8 * 4 * 2, abs=4)  # what was received, once
