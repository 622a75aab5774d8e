"""ALFWorld's text grammar: the stock engine's texts without parsing and copying at every step.

Imports textworld, so only `engine` imports this module. The stock grammar parses the start text of
every derivation and copies each symbol with its context. Here the parsed symbols are shared and
never modified, and a context is a read-only mapping. Derived texts and their order are the same.

The stock grammar also passes a game file's `{expression}` to Python's `eval`. Here an expression is
names, attributes of names, quoted texts, `+` and `or`, which is all that ALFWorld's grammar uses; a
game file with any other expression is refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

from textworld.envs.pddl import logic as pddl_logic
from textworld.envs.pddl import textgen
from textworld.generator.game import EntityInfo
from textworld.logic import Placeholder, Rule, TypeHierarchy, Variable

_LONGEST_EXPRESSION = 200  # characters
_MOST_SYMBOLS = 1_000_000  # in one text; ALFWorld's have about a hundred

# state, variables {name: EntityInfo}, mapping {Placeholder: Variable}, entity_infos
Context = Mapping[str, Any]
_Value = Callable[[Mapping[str, EntityInfo]], Any]


@lru_cache(maxsize=4096)
def _parse_symbols(text: str) -> tuple[textgen.Symbol, ...]:
    return tuple(textgen._parse_and_convert(text, rule_name="symbols"))


@lru_cache(maxsize=1024)
def _parse_query(query: str) -> Rule:
    return Rule.parse_conjunctive_query(query)


@dataclass(frozen=True)
class _Expression:
    """An `{expression}` of a grammar: the variables it reads, and its value of them."""

    names: frozenset[str]
    value: _Value


@lru_cache(maxsize=1024)
def _read_expression(text: str) -> _Expression:
    """Parse an expression. Raises ValueError for one that this module does not allow."""
    refused = ValueError(
        f"its grammar has the expression {{{text[:_LONGEST_EXPRESSION]}}}; only a name, "
        "name.attribute, a quoted text, + and `or` are read, since a game file must not run code"
    )
    try:
        if len(text) > _LONGEST_EXPRESSION:
            raise refused
        tree = ast.parse(text.strip(), mode="eval").body
        names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        return _Expression(names, _evaluator(tree))
    except (SyntaxError, TypeError, RecursionError, MemoryError):
        raise refused from None


def _evaluator(node: ast.expr) -> _Value:
    """Return the function of a syntax node. Raises TypeError for any other kind of node."""
    match node:
        case ast.Name(id=name):
            return lambda variables: variables[name]
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if (
            attribute in EntityInfo.__slots__
        ):
            return lambda variables: getattr(variables[name], attribute)
        case ast.Constant(value=str(text)):
            return lambda variables: text
        case ast.BinOp(op=ast.Add()):
            left, right = _evaluator(node.left), _evaluator(node.right)
            return lambda variables: left(variables) + right(variables)
        case ast.BoolOp(op=ast.Or(), values=operands):
            first, *others = map(_evaluator, operands)
            return lambda variables: reduce(
                lambda value, other: value or other(variables), others, first(variables)
            )
    raise TypeError(type(node).__name__)


def _check_expressions(symbols: Iterable[textgen.Symbol]) -> None:
    for symbol in symbols:
        if isinstance(symbol, textgen.ListSymbol):
            _check_expressions([symbol.symbol])
        elif isinstance(symbol, textgen.ConditionalSymbol):
            _check_expressions([symbol.expression])
        elif isinstance(symbol, textgen.EvalSymbol):
            _read_expression(symbol.expression)


class CachedGrammar(textgen.ContextSensitiveGrammar):
    """`ContextSensitiveGrammar` whose `derive` returns the same text about 50 times faster."""

    def derive(self, start: str, context: Context) -> str:
        stack = [(symbol, context) for symbol in reversed(_parse_symbols(start))]
        derived = []
        left = _MOST_SYMBOLS
        while stack:
            left -= 1
            if not left:
                raise ValueError(
                    f"its grammar does not end at {start!r} after {_MOST_SYMBOLS:,} symbols"
                )
            symbol, context = stack.pop()
            if isinstance(symbol, textgen.TerminalSymbol):
                derived.append(str(symbol))
            elif isinstance(symbol, textgen.EvalSymbol):
                derived.append(str(_read_expression(symbol.expression).value(context["variables"])))
            elif isinstance(symbol, textgen.NonterminalSymbol):
                stack.extend(
                    (part, context) for part in reversed(self._production(symbol, context))
                )
            elif isinstance(symbol, textgen.ListSymbol):
                stack.extend(reversed(_enumerate(_expand(symbol.symbol, context), context)))
            else:
                stack.extend(reversed(_expand(symbol, context)))
        return "".join(derived)

    def _production(self, symbol: textgen.Symbol, context: Context) -> list[textgen.Symbol]:
        """Return the right-hand side of the first rule for `symbol` whose condition holds."""
        for rule in self._rules.get(str(symbol), ()):
            if not rule.condition or next(_matches(rule.condition, context), None) is not None:
                return rule.rhs
        raise textgen.CSGUnknownSymbolError(symbol)


def _matches(query: str, context: Context) -> Iterator[Mapping[Placeholder, Variable]]:
    return context["state"].all_assignments(_parse_query(query), context["mapping"])


def _expand(
    symbol: textgen.ConditionalSymbol, context: Context
) -> list[tuple[textgen.Symbol, Context]]:
    """Return the expression of `{expression | query}` once per match, in the engine's order."""
    if not symbol.given:
        return [(symbol.expression, context)]
    infos = context["entity_infos"]
    expanded: list[tuple[textgen.Symbol, Context]] = []
    for match in _matches(symbol.given, context):
        variables = {
            **context["variables"],
            **{slot.name: infos[var.name] for slot, var in match.items()},
        }
        mapping = {**context["mapping"], **match}
        expanded.append(
            (symbol.expression, {**context, "variables": variables, "mapping": mapping})
        )
    return expanded


def _enumerate(
    items: list[tuple[textgen.Symbol, Context]], context: Context
) -> list[tuple[textgen.Symbol, Context]]:
    """Return "a, b, and c" of `[items]` with the grammar's separators, or its word for none."""
    if not items:
        return [(textgen.NonterminalSymbol("list_empty"), context)]
    enumerated = [items[0]]
    for count, item in enumerate(items[1:], start=2):
        separator = "list_last_separator" if count == len(items) else "list_separator"
        enumerated += [(textgen.NonterminalSymbol(separator), context), item]
    return enumerated


@lru_cache(maxsize=1024)
def names_read(template: str, fluents: frozenset[str]) -> frozenset[str] | None:
    """Return the variables that a command depends on; None if it can change during a game.

    `fluents` are the predicates that actions change. "go to [{r.name | receptacleatlocation(
    r:receptacle, lend:location)}]" reads r and lend, and no action moves a receptacle.
    """
    names: set[str] = set()
    for symbol in _parse_symbols(template):
        if isinstance(symbol, textgen.ListSymbol):
            symbol = symbol.symbol
        if isinstance(symbol, textgen.ConditionalSymbol):
            predicates = _parse_query(symbol.given).preconditions if symbol.given else ()
            if any(predicate.name.removeprefix("not_") in fluents for predicate in predicates):
                return None
            names.update(slot.name for predicate in predicates for slot in predicate.parameters)
            symbol = symbol.expression
        if isinstance(symbol, textgen.EvalSymbol):
            names.update(_read_expression(symbol.expression).names)
        elif isinstance(symbol, textgen.NonterminalSymbol):
            return None
    return frozenset(names)


# Grammars of different games differ only in this string. The allowed characters mean nothing in it.
_GOAL = re.compile(r"""(?<=")Your task is to: ([A-Za-z0-9 ,'-]+)\.(?=")""")
_NO_GOAL = "Your task is to: UNKNOWN GOAL."


@lru_cache(maxsize=16)
def _parse_document(
    grammar: str,
) -> tuple[dict[str, pddl_logic.Action], textgen.ContextSensitiveGrammar]:
    actions, parsed = pddl_logic._parse_and_convert(grammar, rule_name="pddlStart")
    for action in actions.values():
        _check_expressions(_parse_symbols(action.template) + _parse_symbols(action.feedback_rule))
    for rules in parsed._rules.values():
        for rule in rules:
            _check_expressions(rule.rhs)
    return actions, parsed


def parse_logic(domain: str, grammar: str) -> pddl_logic.GameLogic:
    """Return the stock `GameLogic(domain, grammar)`.

    Its grammar is parsed once for all games that differ only in the goal line.
    """
    logic = pddl_logic.GameLogic.__new__(pddl_logic.GameLogic)
    logic.domain = domain
    logic.types = TypeHierarchy()
    logic.grammar = CachedGrammar()
    goals = _GOAL.findall(grammar)
    actions, parsed = _parse_document(_GOAL.sub(_NO_GOAL, grammar) if len(goals) == 1 else grammar)
    logic.grammar.update(parsed)
    logic.actions = dict(actions)
    if len(goals) == 1:
        goal = list(_parse_symbols(f"Your task is to: {goals[0]}."))
        for rules in logic.grammar._rules.values():
            for index, rule in enumerate(rules):
                if [str(symbol) for symbol in rule.rhs] == [_NO_GOAL]:
                    rules[index] = textgen.ProductionRule(
                        rule.lhs, goal, rule.weight, rule.condition
                    )
    return logic
