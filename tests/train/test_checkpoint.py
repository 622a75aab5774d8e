"""Checkpoints of a tiny state: a damaged one is never loaded, and never lost."""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.checkpoints import PLANNED, resumed, save, state
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint.checkpoint_managers import PreservationContext

from cotjax.errors import DataError, UsageError
from cotjax.train.checkpoint import Checkpoints, Keep, Ranked


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    save(folder, 0, 10, 20)
    return folder


def _array_file(folder: Path, item: str) -> Path:
    """The largest file of an item: it holds numbers."""
    return max(
        (path for path in (folder / item).rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def _cut(folder):
    os.truncate(_array_file(folder, "params"), 10)


def _flip(folder):
    path = _array_file(folder, "opt_state")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def _bad_json(folder):
    path = next(path for path in (folder / "run").rglob("*") if path.is_file())
    path.write_text(path.read_text()[:-3])


DAMAGES = {
    "a file cut short": _cut,
    "a flipped bit": _flip,
    "a missing array file": lambda folder: _array_file(folder, "params").unlink(),
    "a missing item": lambda folder: shutil.rmtree(folder / "opt_state"),
    "bad JSON": _bad_json,
    "bad sums": lambda folder: (folder / "sums.json").write_text("{"),
    "no sums": lambda folder: (folder / "sums.json").unlink(),
    "nothing in it": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_kept_and_saved_again(three, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    DAMAGES[damage](folder / "20")
    left = {
        path.relative_to(folder / "20"): path.read_bytes()
        for path in (folder / "20").rglob("*")
        if path.is_file()
    }
    step, warned = resumed(folder)
    assert step == 10
    assert (
        len(warned) == 1
        and str(folder / "20") in warned[0]
        and "20.damaged-1" in warned[0]
        and "\n" not in warned[0]
    )
    aside = folder / "20.damaged-1"
    assert {
        path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()
    } == left
    save(folder, 20)
    assert resumed(folder) == (20, [])


def test_damage_upon_damage_and_none_left(three, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    for name in ("20", "10"):
        _cut(folder / name)
    assert resumed(folder)[0] == 0
    save(folder, 20)
    for name in ("20", "0"):
        _cut(folder / name)
    step, warned = resumed(folder)
    assert step is None and len(warned) == 2
    assert sorted(path.name for path in folder.glob("*.damaged-*")) == [
        "0.damaged-1",
        "10.damaged-1",
        "20.damaged-1",
        "20.damaged-2",
    ]


def test_orbaxs_own_metadata_may_be_lost(three, tmp_path):
    """It tells when a checkpoint was written, and is not read."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    (folder / "20" / "_CHECKPOINT_METADATA").write_text("{")
    assert resumed(folder) == (20, [])


def test_a_save_that_was_cut_off_is_no_checkpoint(three, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp")
    assert resumed(folder) == (20, [])
    save(folder, 30)
    assert resumed(folder) == (30, [])


def test_a_later_update_does_not_reach_into_a_checkpoint(tmp_path):
    """The update is donated the very buffers that are being saved, as a train step is."""
    update = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 7, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(PLANNED))
    for step in (0, 10, 20):
        now = state(step, size=4_000_000)
        checkpoints.save(now, {"step": step, "iterator": None})
        for _ in range(3):
            now = update(now)
        jax.block_until_ready(now)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (0, 10, 20):
        jax.tree.map(
            np.testing.assert_array_equal,
            checkpoints.restore(step, state(0, size=4_000_000))[0],
            state(step, size=4_000_000),
        )
    checkpoints.close()


def test_what_stays_on_the_disk_is_what_keep_says(tmp_path):
    losses = {10: 5.0, 20: 1.0, 30: 4.0, 40: 3.0, 50: 2.0}
    save(tmp_path / "last", 0, 10, 20, 30, 40, 50, keep=Keep(PLANNED, last=2), losses=losses)
    save(
        tmp_path / "all",
        0,
        10,
        20,
        30,
        40,
        50,
        keep=Keep(PLANNED, last=1, every=30, best=2),
        losses=losses,
    )
    save(tmp_path / "stop", 0, 10, 13, 20, 25)
    found = {
        path.name: sorted(int(each.name) for each in path.iterdir()) for path in tmp_path.iterdir()
    }
    assert found == {"last": [40, 50], "all": [0, 20, 30, 50], "stop": [0, 10, 20, 25]}


@given(
    st.sets(st.integers(0, 30), min_size=1), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)
)
def test_keeping_never_loses_the_newest_nor_what_it_names(steps, last, every, best):
    saved = sorted(steps)
    losses = {step: float((step * 7) % 11) for step in saved}
    if (every or best) and not last:
        with pytest.raises(UsageError, match="keep_last"):
            Keep(range(0, 31, 2), last, every, best)
        return
    keep = Keep(range(0, 31, 2), last, every, best, losses)
    infos = [Ranked(step, datetime(2026, 1, 1), (0.0, 0)) for step in saved]
    stays = keep.should_preserve(infos, context=PreservationContext())
    stay = {step for step, kept in zip(saved, stays, strict=True) if kept}
    planned = [step for step in saved if step % 2 == 0]
    assert saved[-1] in stay and stay <= {*planned, saved[-1]}
    if not last:
        assert stay >= set(planned)
    assert stay >= set(planned[-last:] if last else [])
    assert all(step in stay for step in planned if every and step % every == 0)
    ranked = sorted(planned, key=lambda step: (losses[step], step))
    assert stay >= set(ranked[:best])
    if last:
        named = {*planned[-last:], *ranked[:best], saved[-1]}
        assert stay == named | {step for step in planned if every and step % every == 0}


FULL = """
import sys
from datetime import datetime
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import jax.numpy as jnp
import numpy as np
from helpers.checkpoints import PLANNED, resumed, save, state
from cotjax.train.checkpoint import Checkpoints, Keep, Ranked
from cotjax.errors import DataError
folder = Path(sys.argv[1]) / "checkpoints"
save(folder, 0, 10)
(folder.parent / "filler").write_bytes(b"x" * 11_000_000)
checkpoints = Checkpoints(folder, Keep(PLANNED))
rng = np.random.default_rng(0)
large = state(20)._replace(opt_state={"mu": jnp.asarray(rng.normal(size=3_000_000))})
try:
    checkpoints.save(large, {"step": 20, "iterator": None})
    checkpoints.close()
except DataError as error:
    print(error)
print(*resumed(folder))
(folder.parent / "filler").unlink()
save(folder, 20)
print(*resumed(folder))
"""


def test_a_full_disk_is_one_clear_line_and_spoils_nothing(tmp_path):
    """On a real file system of 16 MB, in a namespace of its own."""
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    here = Path(__file__).parent
    inner = f'mount -t tmpfs -o size=16m none "{tmp_path}" && exec "$@"'
    command = [sys.executable, "-c", FULL, str(tmp_path), str(here), str(here.parent)]
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, "sh", *command], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    error, after, later = ran.stdout.splitlines()
    assert (
        str(tmp_path / "checkpoints" / "20") in error
        and "the disk is full" in error
        and "steps [0, 10]" in error
    )
    assert (after, later) == ("10 []", "20 []")


def test_a_damaged_checkpoint_is_not_evaluated(three, tmp_path):
    from helpers import tiny

    from cotjax.model.sharding import make_mesh

    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    _cut(folder / "10")
    checkpoints = Checkpoints(folder)
    with pytest.raises(DataError, match=r"10: params/.* had .*damaged"):
        checkpoints.restore_params(
            10, tiny.model_config(), make_mesh(1, 1, 1, devices=jax.devices()[:1])
        )
    checkpoints.close()
    assert json.loads((folder / "10" / "sums.json").read_text())
