"""Flags of bundles: they are passed on as they were meant, and wrong ones are one clear line."""

import sys

import pytest
from helpers.desk import NASTY, ROOT, Desk, prepared, read_back

REAL = {"PYTHON": sys.executable}


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_a_bundle_is_named_from_where_the_command_is_given(desk, tmp_path):
    """gpu.sh and slurm.sbatch pass the folder on as an absolute path, to the job too."""
    here = prepared(desk, tmp_path, "cuda13")
    folder = desk.work / "my bundle"
    folder.mkdir()
    (folder / "parts.json").touch()
    setup = [".", "launch/setup.sh", "cuda13", str(folder)]
    dry = desk.run("gpu.sh", "--dry-run", "--bundle", "my bundle/", *NASTY, **here)
    command = [f"{here['VENV']}/bin/cotjax", *NASTY]
    assert read_back(dry.stdout) == [setup, command], dry.stderr
    flags = ("--bundle", "./my bundle", "--gpus-per-node=8")
    assert desk.run("slurm.sbatch", *flags, "--", *NASTY).returncode == 0
    submitted = desk.calls()[-1]
    at = submitted.index("launch/slurm.sbatch")
    assert submitted[at + 1 :] == ["--bundle", str(folder), "--", *NASTY]
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}
    dry = desk.run("slurm.sbatch", "--dry-run", *submitted[at + 1 :], **here, **job)
    assert read_back(dry.stdout)[0] == setup, dry.stderr


def test_a_dry_run_of_a_bundle_prints_every_step(desk, tmp_path):
    (tmp_path / "Qwen3").mkdir()
    (tmp_path / "Qwen3" / "config.json").touch()
    flags = ("--extra", "cuda13", "--base", str(tmp_path / "Qwen3"), "--games", "2")
    ran = desk.run("bundle.sh", "--dry-run", "--out", "b", *flags, "--part-size", "60", **REAL)
    words = read_back(ran.stdout)
    assert ran.returncode == 0 and not (desk.work / "b").exists(), ran.stderr
    out = str(desk.work / "b")
    python = [f"{out}/.work/venv/bin/python", "launch/bundle"]
    assert [*python, "fetch", out, "--extra", "cuda13"] in words
    assert ["mv", f"{out}/.work/copy", f"{out}/base/Qwen3"] in words
    games = ["games", "make", "--per-type", "2", "--out", f"{out}/games"]
    assert [f"{desk.venv}/bin/cotjax", *games] in words
    assert words[-2:] == [[*python, "seal", out, "--part-size", "60"], ["rm", "-r", f"{out}/.work"]]


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (("gpu.sh", "--bundle"), {}, "--bundle needs a value"),
        (("gpu.sh", "--bundle", "none", "demo"), {}, "none has no manifest.json and no parts.json"),
        (
            ("slurm.sbatch", "--bundle", "/none", "--gpus-per-node=8", "--", "demo"),
            {},
            "--bundle: /none has no manifest.json",
        ),
        (("bundle.sh",), {}, "--out is missing"),
        (("bundle.sh", "--out", "b", "--part-size", "60MB"), {}, "--part-size is '60MB'"),
        (("bundle.sh", "--out", "b", "--python", "3.99"), {}, "there is no Python 3.99 here"),
        (("bundle.sh", "--out", "b", "--base", "/none/model"), {}, "no folder of a Hugging Face"),
        (("bundle.sh", "--out", "b", "--games", "0"), {}, "--games is 0"),
        (("bundle.sh", "--out", "b", "--games", "nowhere"), {}, "there is no folder"),
        (("bundle.sh", "--out", "b", "check"), {}, "has no manifest.json and no parts.json"),
        (("bundle.sh", "--out", "b", "--", "study"), {}, "nothing may follow --"),
        (("bundle.sh", "--out", "b"), {"PYTHON": "/none/python"}, "/none/python does not run"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_is_wrong_is_one_clear_line(arguments, changes, words, dry, desk):
    script, *rest = arguments
    ran = desk.run(script, *(["--dry-run"] if dry else []), *rest, **REAL | changes)
    assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    assert desk.calls() == [] and list(desk.work.iterdir()) == []
