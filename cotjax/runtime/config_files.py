"""Configs as Python files, and their values as text on a command line."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.errors import CotjaxError, UsageError


def run_config_file(path: Path) -> ConfigDict:
    """Run a config file's `get_config`. Raises UsageError, which names the line, where it fails."""
    spec = importlib.util.spec_from_file_location(f"cotjax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A config may start from another in its folder: `import demo`.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError(f"{path}: defines no get_config(); configs/demo.py is an example")
        config = module.get_config()
    except CotjaxError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        # The innermost line that is in a config file, not in a library that it calls.
        frames = traceback.extract_tb(error.__traceback__)
        folder = path.resolve().parent
        own = [frame for frame in frames if Path(frame.filename).resolve().parent == folder]
        where = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
        raise UsageError(f"{where}: {type(error).__name__}: {_one_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: get_config() returned a {type(config).__name__}, no ConfigDict")
    return config


def _one_line(error: Exception) -> str:
    """Return an error's message on one line, without ml_collections' list of fields."""
    text = str(error).strip("\"'")
    hint = re.search(r"Did you mean .*\?", text)
    reason = text.partition(" Other fields present")[0]
    return " ".join(f"{reason} {hint.group() if hint else ''}".split())


def parse_value(name: str, text: str, old: Any) -> Any:
    """Return the value that a text gives to a field whose value is `old`, with its type.

    Raises UsageError for another type.
    """
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, tuple):
        if isinstance(value, list | tuple):
            return tuple(value)
        return tuple(filter(None, text.split(","))) if isinstance(value, str) else (value,)
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if type(value) is not type(old):
        raise UsageError(
            f"--config.{name}: {text!r} is not of type {type(old).__name__}; it is {old!r} now"
        )
    return value
