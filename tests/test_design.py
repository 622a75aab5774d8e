"""docs/design.md names rooms, files and functions that exist."""

import ast
import re
from pathlib import Path

import cotjax

ROOT = Path(cotjax.__file__).parent
PAGE = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")


def test_every_room_is_on_the_page_and_every_room_on_the_page_is_there():
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", PAGE, re.MULTILINE)
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix != ".typed"}
    assert {room for _, room in rows} == rooms - {"__init__", "__pycache__"}


def test_every_file_and_function_on_the_page_is_there():
    missing = []
    for file, name in re.findall(r"`([\w/]+\.py)(?::(\w+))?`", PAGE):
        base = ROOT.parent if file.startswith("tests/") else ROOT
        if not (base / file).exists():
            missing.append(file)
            continue
        body = ast.parse((base / file).read_text(encoding="utf-8")).body
        names = {getattr(node, "name", None) for node in body}
        if name and name not in names:
            missing.append(f"{file}:{name}")
    assert not missing
