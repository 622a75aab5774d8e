"""Lines of the files of measurements, each a JSON object of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cotjax.errors import DataError

Parsed = TypeVar("Parsed", bound=BaseModel)


def parse_line(file: Path, number: int, line: str, model: type[Parsed], remedy: str) -> Parsed:
    """Return what line `number` (from 1) of a file holds.

    Raises DataError, which names the line and the first field that is wrong, and ends with
    `remedy`.
    """
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{file}:{number}: {where + ': ' if where else ''}{problem['msg']}; {remedy}"
        ) from None
