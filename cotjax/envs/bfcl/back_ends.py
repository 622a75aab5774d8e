"""BFCL's back ends, fresh for each episode, and its checker.

The package caches back ends in globals of its modules, and keeps some of their state there too: the
cards and bookings of long_context, and lists that are default arguments. So everything starts from
modules that are imported anew, and these are taken apart at the end of the episode or check: a
module, its functions and its classes refer to each other, so otherwise they stay until the garbage
collector looks at them, and `typing`, which keeps the classes of annotations, keeps some for good.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from types import ModuleType
from typing import Any

from cotjax.envs.bfcl.calls import Call, CallError
from cotjax.envs.bfcl.entries import CLASSES, INSTALL, Entry
from cotjax.errors import UsageError

_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval"
# Arguments that decide how long a call takes: function -> parameter. At most this large.
_EFFORT = {
    "power": "exponent",
    "logarithm": "precision",
    "square_root": "precision",
    "round_number": "decimal_places",
}
_MAX_EFFORT = 1000
# Files and directories of the file system; directories in one another. `cp` can copy a directory
# into itself, and double a tree with each call.
_MAX_FILES, _MAX_DEPTH = 20_000, 50
# Texts of sets, whose order differs between processes.
_SET = re.compile(r"(?<=Must be one of \{)[^{}]*(?=\})|(?<=Invalid fields for update: ).*")


class TooLargeError(Exception):
    """The state has grown too large to go on."""


class BackEnds:
    """The back ends of one episode, in the entry's initial state."""

    def __init__(self, entry: Entry):
        run = _fresh("multi_turn_utils").execute_multi_turn_func_call
        _, instances = run(
            [],
            entry.raw["initial_config"],
            entry.raw["involved_classes"],
            "cotjax",
            entry.id,
            long_context="long_context" in entry.id,
        )
        self._methods: dict[str, Callable[..., Any]] = {}
        for instance in instances.values():
            for name, method in inspect.getmembers(instance, inspect.ismethod):
                if not name.startswith("_"):
                    self._methods[name] = method
        self._files = instances.get("GorillaFileSystem")
        self._modules = _imported()

    def close(self) -> None:
        """Free the modules of the episode. No call can be made after it."""
        self._methods, self._files = {}, None
        _take_apart(self._modules)

    def check(self, call: Call) -> None:
        """Raise CallError for an unknown function, and for a call that would take too long."""
        method = self._methods.get(call.name)
        if method is None:
            raise CallError(f"there is no function {call.name}")
        if call.name not in _EFFORT:
            return
        names = list(inspect.signature(method).parameters)
        values = dict(zip(names, call.arguments, strict=False)) | call.keywords
        value = values.get(_EFFORT[call.name])
        if isinstance(value, int | float) and abs(value) > _MAX_EFFORT:
            raise CallError(f"{_EFFORT[call.name]} of {call.name} is above {_MAX_EFFORT}")

    def run(self, call: Call) -> tuple[str, bool]:
        """Execute a call; return its result as the package writes it, and whether it is no error.

        Raises TooLargeError after a call that has made the file system too large.
        """
        try:
            # Copies, because back ends keep lists that they are given, and add to them.
            arguments, keywords = deepcopy((call.arguments, call.keywords))
            result = self._methods[call.name](*arguments, **keywords)
            text = _text(result)
        except Exception as error:
            return f"Error during execution: {error}", False
        if call.name in ("cp", "mv", "mkdir"):
            self._check_size()
        return _SET.sub(_sorted, text), not (isinstance(result, dict) and "error" in result)

    def _check_size(self) -> None:
        seen, open_ = 0, [(self._files.root, 0)] if self._files else []
        while open_:
            directory, depth = open_.pop()
            inside = directory.contents.values()
            seen += len(inside)
            if seen > _MAX_FILES or depth > _MAX_DEPTH:
                raise TooLargeError
            open_ += [(item, depth + 1) for item in inside if hasattr(item, "contents")]


def accepts(entry: Entry, turns: Sequence[Sequence[Sequence[Call]]]) -> bool:
    """Return whether BFCL's checker accepts the turns that have been played, in a fresh state.

    `turns`: turn by turn and action by action, the calls that were executed.
    """
    check = _fresh("multi_turn_checker").multi_turn_checker
    try:
        verdict = check(
            [[[call.code for call in action] for action in actions] for actions in turns],
            [list(answer) for answer in entry.answers[: len(turns)]],
            entry.raw,
            entry.id.rpartition("_")[0],
            "cotjax",
        )
        return bool(verdict["valid"])
    finally:
        _take_apart(_imported())


@cache
def prepare() -> None:
    """Import all back ends once: processes forked from this one share what they bring.

    Raises UsageError where they cannot be imported.
    """
    try:
        _fresh("multi_turn_checker")
        for file, _ in CLASSES.values():
            importlib.import_module(f"{_PACKAGE}.func_source_code.{file}")
    except ImportError as error:
        raise UsageError(f"{INSTALL} ({error})") from error
    finally:
        _take_apart(_imported())


def _fresh(module: str) -> Any:
    """Import a module of the package anew, with all that it imports from there."""
    for name in _imported():
        del sys.modules[name]
    return importlib.import_module(f"{_PACKAGE}.{module}")


def _imported() -> dict[str, ModuleType]:
    """Return name -> module, of what the last `_fresh` and the functions of its module imported."""
    return {name: each for name, each in sys.modules.items() if name.startswith(f"{_PACKAGE}.")}


def _take_apart(modules: dict[str, ModuleType]) -> None:
    """Break the cycles of references of these modules, which nothing uses any more."""
    for name, module in modules.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
        for kind in [value for value in vars(module).values() if isinstance(value, type)]:
            if kind.__module__ == name:
                for method in [key for key, value in vars(kind).items() if callable(value)]:
                    with suppress(AttributeError, TypeError):
                        delattr(kind, method)
        vars(module).clear()
    modules.clear()


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError, RecursionError):
            pass
    return str(result)


def _sorted(found: re.Match[str]) -> str:
    return ", ".join(sorted(found[0].split(", ")))
