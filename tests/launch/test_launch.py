"""The launchers: --dry-run prints exactly what is run, arguments are checked, keys stay secret.

Programs that record their arguments replace gcloud, xpk, sbatch and the like: no cloud is needed.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.desk import NASTY, ROOT, Desk, prepared, read_back


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


TPU = ("tpu_vm.sh", "--name", "my slice's", "--type", "v6e-16")
XPK = (
    "gke_xpk.sh",
    "--name",
    "my-run",
    "--cluster",
    "my cluster",
    "--image",
    "registry/cotjax:1",
    "--type",
    "v6e-16",
)
COMMANDS = {
    "create": (*TPU, "--spot", "create"),
    "create slices": (*TPU, "--slices", "2", "create"),
    "install": (*TPU, "--nfs", "10.0.0.2:/share", "install"),
    "run": (*TPU, "run", "--", *NASTY),
    "run on slices": (*TPU, "--slices", "3", "run", "--", *NASTY),
    "resume": (*TPU, "resume", "--", *NASTY),
    "status": (*TPU, "status"),
    "logs": (*TPU, "logs"),
    "stop": (*TPU, "stop"),
    "delete": (*TPU, "delete"),
    "xpk build": (*XPK, "build"),
    "xpk create": (*XPK, "--slices", "2", "create", "--", *NASTY),
    "xpk resume": (*XPK, "resume", "--", *NASTY),
    "xpk status": (*XPK, "status"),
    "xpk logs": (*XPK, "logs"),
    "xpk delete": (*XPK, "delete"),
    "sbatch": (
        "slurm.sbatch",
        "--nodes=2",
        "--gpus-per-node=8",
        "--comment=my job's",
        "--",
        *NASTY,
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_what_is_printed_is_what_is_run(case, desk):
    script, *arguments = COMMANDS[case]
    dry = desk.run(script, "--dry-run", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert desk.calls() == [] and list(desk.work.iterdir()) == [], "a dry run does nothing"
    real = desk.run(script, *arguments)
    assert real.returncode == 0, real.stderr
    printed = [words for words in read_back(dry.stdout) if words[0] not in ("git", "rm")]
    assert printed == desk.calls() and printed
    for output in (dry, real):
        assert "secret-of-mine" not in output.stdout + output.stderr + json.dumps(printed)
    assert not list(desk.work.iterdir())


def test_a_slice_is_asked_for_as_gcloud_wants_it(desk):
    desk.run(*TPU, "--spot", "create")
    place = ["--project=my-project", "--zone=us-east5-b"]
    asked = [
        "--node-id=my slice's",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-alpha-tpuv6e",
        "--spot",
    ]
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    assert desk.calls() == [
        [*queue, "create", "my slice's", *place, *asked],
        [*queue, "describe", "my slice's", *place, "--format=value(state.state)"],
    ]


def sent(desk: Desk) -> str:
    """The command line that a host is given."""
    return next(word for word in desk.calls()[-1] if word.startswith("--command=")).removeprefix(
        "--command="
    )


def host(tmp_path: Path) -> tuple[Path, Desk]:
    """A host's home folder, with a cotjax that writes down how it is called."""
    home = tmp_path / "home"
    (home / "cotjax" / ".venv" / "bin").mkdir(parents=True)
    return home, home / "cotjax" / ".venv" / "bin"


def eventually(path: Path) -> None:
    for _ in range(100):
        if path.exists() and path.read_text():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("keys", [False, True])
def test_a_host_gets_the_arguments_as_they_were(keys, desk, tmp_path):
    """The line that gcloud passes to a host's shell starts cotjax there, with the keys."""
    file = tmp_path / "my keys"
    file.write_text("WANDB_API_KEY=secret-of-mine\n")
    flags = ("--keys", str(file)) if keys else ()
    assert desk.run(*TPU, *flags, "run", "--", *NASTY).returncode == 0
    assert "secret-of-mine" not in json.dumps(desk.calls())
    home, bin_ = host(tmp_path)
    if keys:
        shutil.copy(file, home / ".cotjax_keys")
    cotjax = bin_ / "cotjax"
    desk.add(cotjax)
    cotjax.write_text(
        cotjax.read_text().replace("print(", "print(os.environ.get('WANDB_API_KEY'), ")
    )
    subprocess.run(
        ["bash", "-c", sent(desk)],
        cwd=home,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
    )
    eventually(home / "cotjax.log")
    assert desk.calls(bin_) == [["cotjax", *NASTY]]
    assert ("secret-of-mine" in (home / "cotjax.log").read_text()) == keys
    assert (home / "cotjax.pid").read_text().strip().isdigit() and not list(
        tmp_path.rglob("hacked")
    )


def test_a_second_start_beside_a_running_one_is_refused(desk, tmp_path):
    desk.run(*TPU, "run", "--", "study")
    home, _ = host(tmp_path)
    (home / "cotjax.pid").write_text(str(os.getpid()))
    ran = subprocess.run(
        ["bash", "-c", sent(desk)],
        cwd=home,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(home)},
    )
    assert ran.returncode == 1 and "runs here already" in ran.stdout


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (2, 2), (75, 42), (137, 137)])
def test_a_pod_that_saved_asks_to_be_started_again(code, ends, desk, tmp_path):
    """xpk starts again what ends with 42, and not what ends with 75."""
    desk.run(*XPK, "create", "--", *NASTY)
    desk.add(desk.bin / "cotjax")
    ran = subprocess.run(
        ["bash", "-c", sent(desk)],
        env={"PATH": f"{desk.bin}:/usr/bin:/bin", "EXITS_cotjax": str(code)},
    )
    assert ran.returncode == ends
    assert desk.calls()[-1] == ["cotjax", *NASTY]


@pytest.mark.parametrize(
    ("driver", "extra"), [("580.82.07", "cuda13"), ("579.9", "cuda12"), ("525.60.13", "cuda12")]
)
def test_the_driver_chooses_cuda(driver, extra, desk, tmp_path):
    here = prepared(desk, tmp_path, extra)
    dry = desk.run("gpu.sh", "--dry-run", *NASTY, SAYS_nvidia_smi=driver, **here)
    setup, command = dry.stdout.split("\n", 1)
    assert setup == f". launch/setup.sh {extra}"
    assert (
        read_back(command) == [[f"{here['VENV']}/bin/cotjax", *NASTY]]
        and desk.calls(tmp_path / "venv" / "bin") == []
    )
    assert desk.run("gpu.sh", *NASTY, SAYS_nvidia_smi=driver, **here).returncode == 0
    assert desk.calls(tmp_path / "venv" / "bin") == [["cotjax", *NASTY]]


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_job_runs_one_process_a_node_and_is_requeued_when_it_saved(code, desk, tmp_path):
    here = prepared(desk, tmp_path, "cuda13") | {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "EXITS_srun": str(code),
    }
    dry = desk.run("slurm.sbatch", "--dry-run", "--", *NASTY, **here)
    setup, command = dry.stdout.split("\n", 1)
    assert setup == ". launch/setup.sh cuda13", dry.stderr
    ran = desk.run("slurm.sbatch", "--", *NASTY, **here)
    srun, *after = [call for call in desk.calls() if call[0] != "nvidia-smi"]
    assert read_back(command) == [srun] and ran.returncode == code
    assert after == ([["scontrol", "requeue", "7"]] if code == 75 else [])
    # What srun starts on a node sees all of the node's GPUs.
    cotjax = tmp_path / "venv" / "bin" / "cotjax"
    cotjax.write_text(
        cotjax.read_text().replace("print(", "print(os.environ['JAX_LOCAL_DEVICE_IDS'], ")
    )
    task = subprocess.run(
        srun[2:],
        capture_output=True,
        text=True,
        env={"SLURM_GPUS_ON_NODE": "4", "PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert task.stdout.strip() == "0,1,2,3" and desk.calls(cotjax.parent) == [["cotjax", *NASTY]]


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (
            ("tpu_vm.sh", "--name", "a", "status"),
            {"CLOUDSDK_CORE_PROJECT": ""},
            "--project is missing",
        ),
        (
            ("tpu_vm.sh", "--name", "a", "status"),
            {"CLOUDSDK_COMPUTE_ZONE": ""},
            "--zone is missing",
        ),
        (("tpu_vm.sh", "status"), {}, "--name is missing"),
        (("tpu_vm.sh", "--name", "a", "create"), {}, "--type is missing"),
        (
            ("tpu_vm.sh", "--name", "a", "--type", "v99-1", "create"),
            {},
            "no image is known for v99-1",
        ),
        (("tpu_vm.sh", "--name", "a", "run"), {}, "nothing to run"),
        (
            ("tpu_vm.sh", "--name", "a", "--keys", "/none", "run", "--", "study"),
            {},
            "/none cannot be read",
        ),
        (("tpu_vm.sh", "--name", "a", "--slices", "two", "status"), {}, "--slices is 'two'"),
        (("tpu_vm.sh", "--name"), {}, "--name needs a value"),
        (("tpu_vm.sh", "--nmae", "a"), {}, "unknown flag --nmae"),
        (("tpu_vm.sh", "fly"), {}, "unknown command fly"),
        (("gke_xpk.sh", "--name", "a", "status"), {}, "--cluster is missing"),
        (
            ("gke_xpk.sh", "--name", "a", "--cluster", "c", "create", "--", "study"),
            {},
            "--image is missing",
        ),
        (("slurm.sbatch", "--nodes=2"), {}, "nothing to run"),
        (("slurm.sbatch", "--nodes=2", "--", "study"), {}, "no GPUs are asked for"),
        (("gpu.sh",), {}, "nothing to run"),
        (("gpu.sh", "demo"), {"SAYS_nvidia_smi": "470.1"}, "CUDA 12 needs 525 or newer"),
        (("gpu.sh", "demo"), {"SAYS_nvidia_smi": "N/A"}, "no driver version"),
        (("gpu.sh", "demo"), {"EXITS_nvidia_smi": "9"}, "finds no GPU"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_is_missing_is_one_clear_line(arguments, changes, words, dry, desk):
    script, *rest = arguments
    ran = desk.run(script, *(["--dry-run"] if dry and rest != ["--name"] else []), *rest, **changes)
    assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    assert all(call[0] == "nvidia-smi" for call in desk.calls())


@pytest.mark.parametrize(
    ("arguments", "tool"),
    [
        (("tpu_vm.sh", "--name", "a", "status"), "gcloud"),
        (("gke_xpk.sh", "--name", "a", "--cluster", "c", "status"), "xpk"),
        (("slurm.sbatch", "--gpus-per-node=8", "--", "study"), "sbatch"),
        (("gpu.sh", "demo"), "nvidia-smi"),
    ],
)
def test_a_tool_that_is_missing_is_named(arguments, tool, desk, tmp_path):
    # A PATH with the tools of a plain system alone.
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("bash", "dirname", "basename", "cat", "sed", "head"):
        (plain / name).symlink_to(shutil.which(name))
    ran = desk.run(*arguments, PATH=str(plain))
    assert ran.returncode == 2 and ran.stderr.startswith(f"{arguments[0]}: {tool} is not here; "), (
        ran.stderr
    )


def test_a_slice_that_cannot_come_ends_the_wait(desk):
    ran = desk.run(*TPU, "create", SAYS_gcloud="FAILED")
    assert ran.returncode == 2 and "is FAILED" in ran.stderr


def test_help_names_every_command(desk):
    for script in ("tpu_vm.sh", "gke_xpk.sh", "slurm.sbatch", "gpu.sh", "bundle.sh"):
        ran = desk.run(script, "--help")
        assert ran.returncode == 0 and "--dry-run" in ran.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here")
def test_shellcheck_finds_nothing():
    scripts = sorted(map(str, [*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch"]))
    ran = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout
