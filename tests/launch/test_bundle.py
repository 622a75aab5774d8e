"""Bundles: what is made with an index is installed without one, whole, or one line says why not.

The checkout is a tiny project with the launchers of this one, and the index is a folder: pip
resolves, builds from source and installs for real, without a network.
"""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pip
import pytest

ROOT = Path(__file__).parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# A build backend without requirements, for the project and for the package that is only source.
BACKEND = """
import zipfile
from pathlib import Path

NAME, VERSION = "{name}", "{version}"
REQUIRES = {requires!r}
EXTRAS = {extras!r}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    file = f"{{NAME}}-{{VERSION}}-py3-none-any.whl"
    info = f"{{NAME}}-{{VERSION}}.dist-info"
    about = f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n"
    about += "".join(f"Requires-Dist: {{line}}\\n" for line in REQUIRES)
    for extra, line in EXTRAS.items():
        about += f"Provides-Extra: {{extra}}\\nRequires-Dist: {{line}}; extra == '{{extra}}'\\n"
    with zipfile.ZipFile(Path(folder) / file, "w") as wheel:
        wheel.writestr(f"{{NAME}}_code.py", f"def main():\\n    print('{{NAME}} runs')\\n")
        wheel.writestr(f"{{info}}/METADATA", about)
        tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{{info}}/WHEEL", tag)
        script = f"[console_scripts]\\n{{NAME}} = {{NAME}}_code:main\\n"
        wheel.writestr(f"{{info}}/entry_points.txt", script)
        wheel.writestr(f"{{info}}/RECORD", "")
    return file

build_editable = build_wheel
"""
BUILD = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
CUDA = {"cuda13": "jax-cuda13-plugin==0.10.2", "cuda12": "jax-cuda12-plugin==0.10.2"}
EXTRAS = {"cuda13": "jax[cuda13]", "cuda12": "jax[cuda12]", "wandb": "wandb"}
REQUIRES = ["jax>=0.10,<0.13", "engine>=1,<2"]


def backend(name, version, requires=(), extras=None):
    return BACKEND.format(name=name, version=version, requires=list(requires), extras=extras or {})


def add_wheel(folder, name, version, requires=(), extras=None):
    space = {}
    exec(backend(name, version, requires, extras), space)
    return folder / space["build_wheel"](folder)


def add_source(folder, name, version):
    files = {"backend.py": backend(name, version), "pyproject.toml": BUILD}
    files["PKG-INFO"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


def add_venv(folder):
    """Make an environment with this Python's pip, in a fraction of ensurepip's seconds."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = folder / "lib" / PYTHON / "site-packages"
    package = Path(pip.__file__).parent
    for source in (package, *package.parent.glob("pip-*.dist-info")):
        (site / source.name).symlink_to(source)
    (folder / "bin" / "pip").touch()


class Place:
    """A checkout, an index in a folder, and environments without any other index."""

    def __init__(self, folder: Path):
        self.folder, self.root, self.index = folder, folder / "checkout", folder / "index"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        self.index.mkdir()
        for version in ("0.10.2", "0.13"):
            add_wheel(self.index, "jax", version, [f"jaxlib=={version}"], CUDA)
            add_wheel(self.index, "jaxlib", version)
        for plugin in ("jax_cuda12_plugin", "jax_cuda13_plugin"):
            add_wheel(self.index, plugin, "0.10.2")
        add_wheel(self.index, "wandb", "1.0")
        add_source(self.index, "engine", "1.0")
        lists = "".join(f'{name} = ["{line}"]\n' for name, line in EXTRAS.items())
        project = f'[project]\nname = "cotjax"\n\n[project.optional-dependencies]\n{lists}'
        (self.root / "pyproject.toml").write_text(f"{BUILD}\n{project}")
        (self.root / "requirements.txt").write_text("# What it needs\n" + "\n".join(REQUIRES))
        (self.root / "backend.py").write_text(backend("cotjax", "0.1", REQUIRES, EXTRAS))

    def run(self, *command, **more) -> subprocess.CompletedProcess:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        environment = kept | {"PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable}
        return subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env=environment | more,
            cwd=self.root,
        )

    def make(self, out, *flags, **more) -> subprocess.CompletedProcess:
        if not (out / ".work" / "venv").exists():
            add_venv(out / ".work" / "venv")
        there = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        return self.run("launch/bundle.sh", "--out", out, *flags, **there | more)

    def fetch(self, out, *extra) -> str:
        """Fill and seal a bundle without the script around it; return what is printed."""
        (out / ".work").mkdir(parents=True, exist_ok=True)
        there = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        filled = self.bundle("fetch", out, "--extra", *extra, **there)
        sealed = self.bundle("seal", out)
        assert filled.returncode == sealed.returncode == 0, filled.stderr + sealed.stderr
        shutil.rmtree(out / ".work")
        return filled.stdout + sealed.stdout

    def install(self, bundle, extra="", venv="venv", **more) -> subprocess.CompletedProcess:
        venv = self.folder / venv
        if not venv.exists():
            add_venv(venv)
        # A namespace without a route, where the machine allows one.
        closed = ["unshare", "--map-root-user", "--net"]
        allowed = shutil.which("unshare") and self.run(*closed, "true").returncode == 0
        command = ["bash", "launch/setup.sh", extra, bundle]
        variables = {"VENV": str(venv), "PIP_FIND_LINKS": "/none", "PIP_INDEX_URL": "no index"}
        return self.run(*(closed if allowed else []), *command, **variables | more)

    def bundle(self, *words, **more) -> subprocess.CompletedProcess:
        """Run launch/bundle alone, as the scripts do after their own checks."""
        venv = self.folder / "venv"
        if not venv.exists():
            add_venv(venv)
        return self.run(venv / "bin" / "python", "launch/bundle", *words, **more)

    def refuse(self, bundle, extra, *words) -> None:
        """Check that a bundle is not installed, and that one line says why."""
        command = ("install", bundle, "--extra", extra, "--python", sys.executable)
        refused(self.bundle(*command), *words)

    def versions(self, venv="venv", **more):
        listing = self.run(self.folder / venv / "bin" / "python", "-m", "pip", "freeze", **more)
        lines = listing.stdout.replace("_", "-").splitlines()
        return [line for line in lines if "==" in line and not line.startswith("#")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A place with a bundle for CUDA 13 in `bundle`."""
    place = Place(tmp_path_factory.mktemp("place"))
    base = place.folder / "tiny"
    base.mkdir()
    (base / "config.json").write_text("{}")
    more = ("--extra", "cuda13,wandb", "--base", base, "--games", base)
    ran = place.make(place.folder / "bundle", *more)
    assert ran.returncode == 0, ran.stderr
    assert "Built from source: engine\n" in ran.stdout
    assert "holds base/tiny, games, wheels: 7 files" in ran.stdout
    shutil.rmtree(place.folder / "bundle" / ".work", ignore_errors=True)
    return place


@pytest.fixture
def place(made, tmp_path):
    """The same place with a bundle and environments of its own."""
    own = Place.__new__(Place)
    own.folder, own.root, own.index = tmp_path, made.root, made.index
    shutil.copytree(made.folder / "bundle", tmp_path / "bundle")
    return own


@pytest.fixture(scope="module")
def code():
    """The modules of launch/bundle."""
    sys.path.insert(0, str(ROOT / "launch" / "bundle"))
    names = ("files", "needs", "install")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(ROOT / "launch" / "bundle"))
    for name in names:
        del sys.modules[name]


def manifest_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())


def change(bundle, **about):
    changed = manifest_of(bundle)
    changed["about"] |= about
    (bundle / "manifest.json").write_text(json.dumps(changed, indent=1))


def refused(ran, *words):
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert all(word in ran.stderr for word in words), ran.stderr


def test_a_bundle_in_parts_is_installed_without_an_index(place, code):
    bundle = place.folder / "bundle"
    about = manifest_of(bundle)["about"]
    assert about["python"] in PYTHON and about["accelerator"] == "cuda13"
    code["files"].split(bundle, 1000)
    ran = place.install(bundle, "cuda13")
    assert ran.returncode == 0, ran.stderr
    wanted = ["engine==1.0", "jax-cuda13-plugin==0.10.2", "jax==0.10.2", "jaxlib==0.10.2"]
    assert set(wanted) <= set(place.versions()), ran.stdout
    assert place.run(place.folder / "venv" / "bin" / "cotjax").stdout == "cotjax runs\n"
    # It is done: neither the same command nor one without the bundle installs again.
    assert place.install(bundle, "cuda13").stdout == ""
    assert place.install("", "cuda13").stdout == ""


@pytest.mark.parametrize("size", [7, 10**6])
def test_parts_join_to_the_same_bundle(size, place, code):
    bundle, files = place.folder / "bundle", code["files"]
    size = max(size, (bundle / "manifest.json").stat().st_size // 50 if size < 10 else size)
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    count = files.split(bundle, size)
    parts = sorted(bundle.glob("bundle.part-*.tar"))
    assert len(parts) == count and {p.name for p in bundle.iterdir()} == {
        "parts.json",
        *(part.name for part in parts),
    }
    assert all(part.stat().st_size == size for part in parts[:-1])
    assert parts[-1].stat().st_size <= size
    # They are one tar file, which other tools read too.
    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(fileobj=whole) as archive:
        assert len(archive.getnames()) == len(before)
    assert files.opened(bundle)["packages"]
    assert {p: p.read_bytes() for p in before} == before
    # Joined again only when the parts are of another bundle.
    (bundle / "wheels").rename(bundle / "moved")
    files.join(bundle)
    assert not (bundle / "wheels").exists()
    (bundle / "manifest.json").write_text("{}")
    files.join(bundle)
    assert (bundle / "wheels").exists()


@pytest.mark.parametrize("kind", ["missing", "cut", "changed"])
@pytest.mark.parametrize("what", ["wheels", "parts"])
def test_a_file_that_is_missing_or_broken_is_named(kind, what, place, code):
    bundle = place.folder / "bundle"
    if what == "parts":
        code["files"].split(bundle, 1000)
    file = sorted(bundle.glob("bundle.part-*.tar" if what == "parts" else "wheels/*.whl"))[1]
    content = bytearray(file.read_bytes())
    file.unlink()
    if kind == "cut":
        file.write_bytes(content[:-1])
    elif kind == "changed":
        content[100] ^= 1
        file.write_bytes(content)
    words = (str(file), "is missing" if kind == "missing" else "is broken", "copy it again")
    place.refuse(bundle, "cuda13", *words)
    refused(place.bundle("check", bundle), *words)
    assert (bundle / "manifest.json").exists() == (what == "wheels")


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"python": "3.99"}, "is for Python 3.99"),
        ({"platform": "linux-riscv64"}, "is for linux-riscv64"),
        ({"glibc": "9.9"}, "made with glibc 9.9"),
        ({"accelerator": "cpu"}, "is for cpu, this machine needs cuda13; make it with --extra"),
        ({"jax": False}, "holds no jax"),
    ],
)
def test_a_bundle_for_another_machine_is_refused(about, words, place):
    change(place.folder / "bundle", **about)
    place.refuse(place.folder / "bundle", "cuda13", words)


def test_a_bundle_for_other_requirements_is_refused(place):
    bundle, own = place.folder / "bundle", place.folder / "checkout"
    shutil.copytree(place.root, own)
    place.root = own
    (own / "requirements.txt").write_text("jax>=0.10,<0.13\nengine>=1.5,<2\n")
    place.refuse(bundle, "", "this checkout needs engine>=1.5,<2, and", "has 1.0")
    (own / "requirements.txt").write_text("jax>=0.10,<0.13\nother>=1\n")
    place.refuse(bundle, "", "this checkout needs other>=1, and", "lacks it")
    place.refuse(place.index, "", "no manifest.json and no parts.json")


def test_a_driver_for_cuda_13_runs_cuda_12(code, capsys):
    def chosen(has, asked, own_jax=False):
        about = {"accelerator": has, "extras": ["wandb"], "jax": True}
        return code["install"].choose_extras(Path("b"), about, asked, own_jax)

    assert chosen("cuda12", "cuda13") == ["cuda12", "wandb"]
    assert chosen("cuda13", "cuda13") == ["cuda13", "wandb"]
    assert chosen("cuda13", "") == ["wandb"] == chosen("cpu", "wandb")
    assert chosen("cpu", "cuda13", own_jax=True) == ["wandb"]
    for has, asked in (("cuda13", "cuda12"), ("cpu", "cuda12"), ("cpu", "docs")):
        with pytest.raises(SystemExit):
            chosen(has, asked)
        assert f"--extra {'cpu,' if asked == 'docs' else ''}{asked}" in capsys.readouterr().err


def of_machine(folder, version):
    """A folder of the machine's own jax with its plugin for CUDA, unpacked."""
    folder.mkdir(parents=True)
    for name in ("jax", "jaxlib", "jax_cuda13_plugin"):
        wheel = add_wheel(folder, name, version)
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
    return folder


def test_jax_of_the_machine_that_does_not_fit_is_not_used(place):
    path = str(of_machine(place.folder / "modules", "0.9.9"))
    ran = place.install(place.folder / "bundle", "", PYTHONPATH=path)
    assert ran.returncode == 0 and "Using jax" not in ran.stdout, ran.stderr
    # For no accelerator nothing of CUDA is installed.
    own = [line for line in place.versions() if line.startswith("jax")]
    assert own == ["jax==0.10.2", "jaxlib==0.10.2"]


def test_an_environment_sees_the_packages_of_the_machine_for_its_jax_alone(place):
    """Jax that lies among the packages of the machine's Python is reached by the environment."""
    base = Path(sys.base_prefix) / "bin" / PYTHON
    if place.run(base, "-c", "import jaxlib").returncode == 0:
        pytest.skip("this machine's Python has a jax of its own")
    user = {"PYTHONUSERBASE": str(place.folder / "user"), "PYTHON": str(base)}
    site = place.folder / "user" / "lib" / PYTHON / "site-packages"
    bundle = place.folder / "bundle"
    change(bundle, jax=False, accelerator="cpu")
    place.refuse(bundle, "cuda13", "holds no jax")
    settings = place.folder / "venv" / "pyvenv.cfg"
    assert "include-system-site-packages = false" in settings.read_text()
    of_machine(site, "0.11.1")
    ran = place.install(bundle, "cuda13", **user)
    assert ran.returncode == 0, ran.stderr
    assert "include-system-site-packages = true" in settings.read_text()
    assert {"engine==1.0", "jax==0.11.1"} <= set(place.versions(**user))


def test_an_interrupted_build_fetches_what_is_missing_in_the_same_versions(place, code):
    bundle = place.folder / "bundle"
    before = manifest_of(bundle)
    (bundle / "wheels" / "engine-1.0-py3-none-any.whl").unlink()
    file = bundle / "wheels" / "jax-0.10.2-py3-none-any.whl"
    file.write_bytes(file.read_bytes()[:-1])
    (bundle / "wheels" / "stray-1.0-py3-none-any.whl").touch()
    newer = add_wheel(place.index, "jaxlib", "0.10.3")
    try:
        done = place.fetch(bundle, "cuda13,wandb")
    finally:
        newer.unlink()
    assert done.startswith("  2 of 2: engine, jax\n"), "nothing is resolved again"
    # A bundle in parts is made again from them: nothing is fetched.
    code["files"].split(bundle, 1000)
    parts = len(list(bundle.glob("bundle.part-*")))
    done = place.fetch(bundle, "cuda13,wandb")
    assert done.startswith(f"Joining the {parts} parts of {bundle}\nBuilt from")
    assert not list(bundle.glob("bundle.part-*")) and not (bundle / "parts.json").exists()
    after = manifest_of(bundle)
    hashes = [package["sha256"] for package in after["packages"].values()]
    assert [package["version"] for package in after["packages"].values()] == [
        package["version"] for package in before["packages"].values()
    ]
    assert all(hashes) and set(after["files"]) == set(before["files"])


@pytest.mark.parametrize(
    ("flags", "holds"),
    [
        (("cpu",), {"engine", "jax", "jaxlib"}),
        (("cuda13", "--no-jax"), {"engine"}),
        (("wandb,cuda12",), {"engine", "jax", "jaxlib", "jax-cuda12-plugin", "wandb"}),
    ],
)
def test_a_bundle_holds_what_its_extra_asks_for(flags, holds, place):
    place.fetch(place.folder / "other", *flags)
    assert set(manifest_of(place.folder / "other")["packages"]) == holds
