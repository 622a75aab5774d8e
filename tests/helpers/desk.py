"""A PATH of programs that record their arguments, to run the launchers with.

They replace gcloud, xpk, sbatch and the like: no cloud is needed.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("gcloud", "xpk", "docker", "kubectl", "sbatch", "srun", "scontrol", "nvidia-smi")
# Words that a careless script would break or run.
NASTY = [
    "study",
    "--config",
    "my configs/it's.py",
    "--out",
    '/mnt/a "b" $(touch hacked) `touch hacked`;&|*',
    "--config.title=ü \\ x\ny",
]
RECORD = """#!{python}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
with open(here / "calls", "a") as calls:
    calls.write(json.dumps([Path(__file__).name, *sys.argv[1:]]) + "\\n")
print(os.environ.get("SAYS_" + Path(__file__).name.replace("-", "_"), ""))
sys.exit(int(os.environ.get("EXITS_" + Path(__file__).name.replace("-", "_"), "0")))
"""


class Desk:
    """A PATH with recording tools, and a shell to run launchers with."""

    def __init__(self, folder: Path):
        self.bin, self.work = folder / "bin", folder / "work"
        self.venv = folder / "venv"
        self.bin.mkdir()
        self.work.mkdir()
        self.with_tools(*TOOLS)

    def with_tools(self, *tools: str) -> None:
        for name in tools:
            self.add(self.bin / name)

    def add(self, path: Path) -> None:
        path.write_text(RECORD.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        kept = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        environment = kept | {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "CLOUDSDK_CORE_PROJECT": "my-project",
            "CLOUDSDK_COMPUTE_ZONE": "us-east5-b",
            "TMPDIR": str(self.work),
            # A launcher that goes on after an error must not install anything.
            "VENV": str(self.venv),
            "PYTHON": "/none/python",
            "SAYS_gcloud": "ACTIVE",
            "SAYS_nvidia_smi": "580.82.07",
            "WANDB_API_KEY": "secret-of-mine",
            "HF_TOKEN": "secret-of-mine",
        }
        command = ["bash", ROOT / "launch" / script, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment | more, cwd=self.work
        )

    def calls(self, path: Path | None = None) -> list[list[str]]:
        file = (path or self.bin) / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def read_back(printed: str) -> list[list[str]]:
    """The words of each printed command, as a shell reads them."""
    commands = []
    for line in printed.splitlines():
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
        ).stdout
        commands.append(words.split("\0")[:-1])
    return commands


def prepared(desk: Desk, tmp_path: Path, extra: str) -> dict[str, str]:
    """Return an environment in which all is installed, and cotjax records its arguments."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    desk.add(venv / "bin" / "cotjax")
    sums = subprocess.run(
        "cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    (venv / f".cotjax-{extra}-{sums.stdout.strip()}").touch()
    return {"VENV": str(venv), "PYTHON": sys.executable}
