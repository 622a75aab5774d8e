"""The mask as users install it: cotjax's wheel and numpy, and no other package."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# Prints what importing the mask loads, without the standard library and what numpy alone loads.
CODE = """
import sys
import numpy as np
before = set(sys.modules)
import cotjax.masking as masking
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
role = masking.Role
roles = np.array([role.PROMPT, role.REASONING, role.ACTION_OPEN, role.ACTION])
drop = masking.Dropping(fraction=1.0).tokens(roles, "x")
assert masking.target_weights(roles, drop_tokens=drop).tolist() == [1, 1, 0, 0]
print(*sorted(loaded - sys.stdlib_module_names))
"""


@pytest.mark.slow
def test_the_wheel_without_its_dependencies_imports_the_mask_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "cotjax", source / "cotjax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source], check=True)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("cotjax-*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", wheel, f"numpy=={np.__version__}"],
        check=True,
    )
    listed = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    found = subprocess.run(
        [python, "-I", "-c", listed], check=True, capture_output=True, text=True
    ).stdout
    assert found.split() == ["cotjax", "numpy"]
    loaded = subprocess.run(
        [python, "-c", CODE], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert loaded.split() == ["cotjax"]
    marker = "import importlib.resources as r; print((r.files('cotjax') / 'py.typed').is_file())"
    typed = subprocess.run(
        [python, "-I", "-c", marker], check=True, capture_output=True, text=True
    ).stdout
    assert typed == "True\n"
