"""The actions of BFCL: lists of Python calls with literal arguments, parsed and never evaluated."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DONE = "done"  # ends the user's turn, as does the empty list
MAX_CHARACTERS = 20_000  # of an action; the longest of the answers has 6,700
MAX_CALLS = 50  # in an action; the longest turn of the answers has 34
_MAX_DEPTH = 6  # of lists and dicts in an argument
_MAX_NUMBER = 10**18


class CallError(ValueError):
    """The text is not an action; says why."""


@dataclass(frozen=True)
class Call:
    """One call: a function's name, and arguments that are literals."""

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The arguments by keyword; those without one by their position."""
        return {str(at): value for at, value in enumerate(self.arguments)} | self.keywords

    def __str__(self) -> str:
        """Return the call as an action writes it: without runs of spaces, which actions lose."""
        return self._render("(?<= ) ")

    @property
    def code(self) -> str:
        """The call for BFCL's checker, which evaluates it.

        No string in it contains a parenthesis, because the checker puts the name of an object
        before whatever looks like a call, in strings too.
        """
        return self._render("[(]")

    def _render(self, escaped: str) -> str:
        parts = [_literal(value, escaped) for value in self.arguments]
        parts += [f"{name}={_literal(value, escaped)}" for name, value in self.keywords.items()]
        return f"{self.name}({', '.join(parts)})"


def action_of(calls: Iterable[Call]) -> str:
    """Return the action that makes the calls."""
    return f"[{', '.join(map(str, calls))}]"


def parse_action(action: str) -> list[Call]:
    """Return the calls of an action; none for `done` and `[]`, which end the user's turn.

    An argument is a string, number, boolean, None, or a list, tuple or dict of them.

    Raises:
      CallError: anything else.
    """
    if len(action) > MAX_CHARACTERS:
        raise CallError(f"it has {len(action):,} characters; at most {MAX_CHARACTERS:,} are read")
    if action.strip() == DONE:
        return []
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in strings
            body = ast.parse(action.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CallError(f"it is neither a list of calls nor {DONE}") from None
    nodes = body.elts if isinstance(body, ast.List) else [body]
    if len(nodes) > MAX_CALLS:
        raise CallError(f"it has {len(nodes)} calls; at most {MAX_CALLS} are made at once")
    return [_call(node) for node in nodes]


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise CallError(f"it is neither a list of calls nor {DONE}")
    name = node.func.id
    keywords: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in keywords:
            raise CallError(f"{name} has an argument twice, or one with **")
        keywords[keyword.arg] = _value(keyword.value, name)
    return Call(name, tuple(_value(value, name) for value in node.args), keywords)


def _value(node: ast.expr, name: str, depth: int = 0) -> Any:
    """Return the value of a literal, an argument of the function `name`."""
    if depth > _MAX_DEPTH:
        raise CallError(f"{name} has an argument nested more than {_MAX_DEPTH} deep")
    match node:
        case ast.Constant(value=bool() | None | str() as value):
            return value
        case ast.Constant(value=int() | float() as value):
            return _number(value, name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -_number(value, name)
        case ast.List(elts=parts):
            return [_value(part, name, depth + 1) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part, name, depth + 1) for part in parts)
        case ast.Dict(keys=keys, values=parts):
            named = [key.value for key in keys if isinstance(key, ast.Constant)]
            if len(named) == len(keys) and all(isinstance(key, str) for key in named):
                values = [_value(part, name, depth + 1) for part in parts]
                return dict(zip(named, values, strict=True))
    raise CallError(f"{name} has an argument that is not a literal")


def _number(value: int | float, name: str) -> int | float:
    if not abs(value) <= _MAX_NUMBER:
        raise CallError(f"{name} has a number above {_MAX_NUMBER:.0e}")
    return value


def _literal(value: Any, escaped: str) -> str:
    """Return a literal's text; characters in strings that match `escaped` are written as \\xNN."""
    match value:
        case str():
            return re.sub(escaped, lambda found: f"\\x{ord(found[0]):02x}", repr(value))
        case list():
            return f"[{', '.join(_literal(part, escaped) for part in value)}]"
        case tuple():
            comma = "," if len(value) == 1 else ""
            return f"({', '.join(_literal(part, escaped) for part in value)}{comma})"
        case dict():
            parts = (
                f"{_literal(key, escaped)}: {_literal(part, escaped)}"
                for key, part in value.items()
            )
            return f"{{{', '.join(parts)}}}"
        case _:
            return repr(value)
