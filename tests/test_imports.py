"""The arrows of the house: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import cotjax

ROOT = Path(cotjax.__file__).parent
LEVELS = {
    "errors": 0, "files": 0, "settings": 0, "signals": 0, "ranges": 0, "terminal": 0, "masking": 0, "formats": 0, "envs": 0, "assets": 0,
    "data": 1, "rollout": 1,
    "model": 2, "distributed": 2,
    "train": 3, "sample": 3,
    "study": 4, "plan": 4, "config": 4,
    "cli": 5, "cli_bench": 5, "cli_data": 5, "cli_games": 5, "cli_mask": 5, "cli_play": 5,
}  # fmt: skip
# Within a level a package imports itself alone, and these.
SAME_LEVEL = {
    ("envs", "errors"), ("envs", "files"), ("envs", "terminal"), ("files", "errors"), ("masking", "errors"), ("signals", "errors"),
    ("ranges", "errors"),
    ("study", "config"), ("plan", "config"), ("cli", "cli_data"), ("cli", "cli_games"), ("cli", "cli_bench"), ("cli", "cli_play"),
    ("cli", "cli_mask"), ("cli_mask", "cli_data"),
}  # fmt: skip
FORBIDDEN = {
    ("rollout", "masking"),
    ("train", "envs"),
    ("train", "rollout"),
    ("train", "sample"),
    ("sample", "envs"),
    ("sample", "formats"),
}
HEAVY = {
    0: {
        "jax",
        "flax",
        "optax",
        "orbax",
        "grain",
        "tensorflow_datasets",
        "transformers",
        "tokenizers",
        "tensorflow",
        "alfworld",
        "textworld",
        "scipy",
    },
    1: {"jax", "flax", "optax", "orbax"},
}


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, parts[0]


def _imports(tree, *, top_level_only):
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "cotjax":
                yield from (f"cotjax.{alias.name}" for alias in node.names)


def test_every_arrow_points_down():
    wrong = []
    for path, package in _modules():
        if package == "__init__":
            continue
        for name in _imports(ast.parse(path.read_text()), top_level_only=False):
            parts = name.split(".")
            if parts[0] != "cotjax" or len(parts) == 1 or parts[1] == package:
                continue
            other = parts[1]
            down = LEVELS[other] < LEVELS[package] or (package, other) in SAME_LEVEL
            if not down or (package, other) in FORBIDDEN:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_heavy_packages_stay_out_of_the_lower_levels():
    wrong = []
    for path, package in _modules():
        level = LEVELS.get(package, 0)
        for name in _imports(ast.parse(path.read_text()), top_level_only=True):
            # An environment's inner rooms are imported by its constructor alone.
            if path.name.startswith("alfworld_") and name.split(".")[0] in {"alfworld", "textworld"}:
                continue
            if name.split(".")[0] in HEAVY.get(level, set()):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_masking_needs_numpy_alone():
    """With everything else made unimportable, the mask works."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {"jax", "flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "transformers", "tokenizers",
                   "alfworld", "textworld", "ml_collections", "scipy", "matplotlib", "rich", "torch"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import cotjax.masking as masking, numpy as np
assert masking.target_weights(np.array([1, 3, 3])).tolist() == [1, 1, 0]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_cotjax_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import cotjax; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert out == ["cotjax"]
