"""Which room may import which, and how large rooms, files and functions may grow."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cotjax
from cotjax.envs.worlds import world_names

ROOT = Path(cotjax.__file__).parent
TESTS = Path(__file__).parent
# Room -> floor. A room imports rooms of lower floors, and itself.
LEVELS = {
    "errors": 0, "assets": 0,
    "check": 1, "formats": 1, "masking": 1, "runtime": 1,
    "envs": 2, "model": 2,
    "config": 3, "data": 3,
    "objectives": 4, "rollout": 4, "sample": 4, "weights": 4,
    "train": 5, "diagnostics": 5, "endpoint": 5,
    "probes": 6, "report": 6, "rl": 6,
    "plan": 7, "study": 7,
    "bench": 8,
    "cli": 9,
}  # fmt: skip
# Lower floors that a room may not import all the same.
FORBIDDEN = {
    ("rollout", "masking"),
    ("rollout", "model"),
    ("sample", "envs"),
    ("sample", "formats"),
    ("train", "config"),
    ("train", "envs"),
    ("train", "rollout"),
    ("train", "sample"),
}
JAX = {"jax", "flax", "optax", "orbax"}
HEAVY = JAX | {
    "alfworld", "grain", "matplotlib", "scipy", "tensorflow", "tensorflow_datasets", "textworld",
    "tokenizers", "transformers",
}  # fmt: skip
# Room -> packages that none of its modules may import at the top.
_LIGHT = ("errors", "assets", "check", "formats", "masking", "runtime", "envs", "cli")
CLOSED = dict.fromkeys(_LIGHT, HEAVY)
CLOSED |= dict.fromkeys(("data", "rollout", "report", "endpoint"), JAX)
# Module -> packages that it may import although its room is closed to them. jax coordinates the
# processes of a run; an engine's modules are imported by the environment's constructor.
_COORDINATION = ("arrays", "distributed", "joining", "stopping")
_ENGINE = ("engine", "grammar", "translation")
OPEN = {f"runtime/{name}.py": {"jax"} for name in _COORDINATION}
OPEN["runtime/settings.py"] = {"flax"}
OPEN |= {f"envs/alfworld/{name}.py": {"alfworld", "textworld"} for name in _ENGINE}
# Worlds are reached through envs/worlds.py; bench measures ALFWorld's engine by name.
WORLDS = tuple(f"cotjax.envs.{name}" for name in world_names())
KNOW_A_WORLD = {"envs", "bench"}
# Functions that may be longer than 60 lines: they read top to bottom.
LONG = {"train/main.py:train", "rl/main.py:reinforce"}


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, parts[0]


def _trees():
    return [(path, room, ast.parse(path.read_text(encoding="utf-8"))) for path, room in _modules()]


def _imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module.partition(".")[0] == "cotjax":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _name(path):
    return ".".join(("cotjax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


def test_every_arrow_points_down():
    wrong = []
    for path, room, tree in _trees():
        for name in _imports(ast.walk(tree)):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top != "cotjax" or other in ("", room):
                continue
            if LEVELS[other] >= LEVELS[room] or (room, other) in FORBIDDEN:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_room_outside_envs_names_a_world():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, room, tree in _trees()
        for name in _imports(ast.walk(tree))
        if name.startswith(WORLDS) and room not in KNOW_A_WORLD
    ]
    assert not wrong, "\n".join(wrong)


def test_no_test_module_imports_another():
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    wrong = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for name in _imports(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        if name.partition(".")[0] in modules
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    trees = {_name(path): tree for path, _, tree in _trees()}
    graph = {
        name: {
            other
            for other in _imports(ast.walk(tree))
            if other in trees and other != name and not name.startswith(f"{other}.")
        }
        for name, tree in trees.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_heavy_packages_stay_out_of_the_rooms_that_close_them():
    wrong = []
    for path, room, tree in _trees():
        name = str(path.relative_to(ROOT))
        for package in {package.partition(".")[0] for package in _imports(tree.body)}:
            if package in CLOSED.get(room, set()) - OPEN.get(name, set()):
                wrong.append(f"{name} imports {package}")
    assert not wrong, "\n".join(wrong)


def test_no_room_is_above_18_percent_of_the_lines_and_no_file_above_400():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path, _ in _modules()}
    rooms = Counter()
    for path, room in _modules():
        # A world is a room of its own: no other one imports it.
        parts = path.relative_to(ROOT).parts
        rooms["/".join(parts[:2]) if room == "envs" and len(parts) > 2 else room] += lines[path]
    large = {
        room: f"{count / rooms.total():.1%}"
        for room, count in rooms.items()
        if count > 0.18 * rooms.total()
    }
    assert not large, large
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400}
    assert not long, long


def test_no_function_is_above_60_lines():
    long = {}
    for path, _, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{path.relative_to(ROOT)}:{node.name}"
                if node.end_lineno - node.lineno + 1 > 60 and place not in LONG:
                    long[place] = node.end_lineno - node.lineno + 1
    assert not long, long


def test_masking_needs_numpy_alone():
    """With all other packages made unimportable, the mask works."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(HEAVY | {"ml_collections", "rich", "torch"})}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import cotjax.masking as masking, numpy as np
assert masking.target_weights(np.array([1, 3, 3])).tolist() == [1, 1, 0]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_cotjax_loads_nothing_else():
    code = """
import sys
before = set(sys.modules)
import cotjax
print(*sorted(set(sys.modules) - before))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert out == ["cotjax"]
