"""Fill in the field tables of docs/records.md from the models of a record.

    python -m cotjax.rollout.record_page docs/records.md

rewrites the text between each pair of marks `<!-- fields of NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel

from cotjax.errors import UsageError
from cotjax.rollout.record import Choice, Episode, Heading, PlayedGame, Response, Timing, Turn

MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (Heading, Episode, PlayedGame, Turn, Response, Choice, Timing)
}
_TABLE = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def fill_in(page: str) -> str:
    """Return the page with every table up to date. Raises UsageError for an unknown model."""

    def replace(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in MODELS:
            raise UsageError(f"no model is called {name}; there are {', '.join(MODELS)}")
        return start + _table(MODELS[name]) + end

    return _TABLE.sub(replace, page)


def _table(model: type[BaseModel]) -> str:
    rows = ["| field | type | |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        kind = _json_type(field.annotation)
        rows.append(f"| `{name}` | {kind} | {field.description} |")
    return "\n".join(rows) + "\n"


def _json_type(annotation: object) -> str:
    """Return the JSON type of an annotation, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(map(_json_type, arguments))
    if origin is tuple:
        return f"list of {_json_type(arguments[0])}s"
    if hasattr(annotation, "__metadata__"):
        return _json_type(arguments[0])
    if origin is Literal:
        return _json_type(type(arguments[0]))
    if isinstance(annotation, type) and annotation in _JSON_TYPES:
        return _JSON_TYPES[annotation]
    return "object"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fill in the field tables of a Markdown file.")
    parser.add_argument("page", type=Path, help="docs/records.md")
    page = parser.parse_args().page
    page.write_text(fill_in(page.read_text(encoding="utf-8")), encoding="utf-8")
