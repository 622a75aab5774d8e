"""Lines of a trajectory file, of bounded length -> JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from cotjax.data.json_text import decode, json_type
from cotjax.errors import DataError

MAX_LINE_BYTES = 16 * 2**20  # a longer line is an error, and is skipped without being loaded


def raw_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield (line, its length in bytes); of a line that is too long, (b"", its length)."""
    while raw := file.readline(MAX_LINE_BYTES + 1):
        size, complete = len(raw), len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n")
        if not complete:
            raw = b""
        while not complete and (part := file.readline(MAX_LINE_BYTES)):
            size, complete = size + len(part), part.endswith(b"\n")
            del part
        yield raw, size


def parse_line(raw: bytes, size: int, where: str, first: bool) -> dict[str, Any]:
    """Return the object of a line that `raw_lines` yielded.

    Args:
      where: the place of the line, with which the error begins.
      first: it is the first line, and may begin with a byte order mark.

    Raises:
      DataError: the line is too long, not UTF-8, or not a JSON object.
    """
    if len(raw) != size:
        raise DataError(
            f"{where}: the line has {size:,} bytes, at most {MAX_LINE_BYTES:,} are read; split or "
            "delete this episode"
        )
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
        row = decode(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is not a character; fix or "
            "delete this line"
        ) from None
    except json.JSONDecodeError as error:
        # The first line is valid as far as it goes.
        if first and error.pos >= len(text.rstrip()):
            raise DataError(
                f"{where}: invalid JSON: one value over several lines, or a line cut short; a "
                "trajectory file has one object a line (convert it with `jq -c .`, or an array "
                "with `jq -c .[]`)"
            ) from None
        raise DataError(
            f"{where}: invalid JSON ({error.msg} at column {error.colno}); fix or delete this line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON ({error}); fix or delete this line") from None
    if not isinstance(row, dict):
        hint = "; write one object a line (`jq -c .[]`)" if isinstance(row, list) else ""
        raise DataError(f"{where}: a trajectory is a JSON object, not {json_type(row)}{hint}")
    return row
