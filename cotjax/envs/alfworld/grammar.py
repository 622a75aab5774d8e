"""ALFWorld's text grammar: the stock engine's texts, without parsing and copying the grammar at every step.

Imports textworld, so only `alfworld_engine` imports this module. The stock grammar parses the start text of every
derivation and copies every symbol with its whole context; here the parsed symbols are shared and never modified, and a
context is a dict that nobody writes to. What is derived, and in which order, is the same.

The stock grammar also hands a game file's `{expression}` to Python's `eval`. Here an expression is names, attributes of named
things, quoted texts, `+` and `or`, which is all that ALFWorld's grammar has; a game file with any other is refused.
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
_MOST_SYMBOLS = 1_000_000  # in one text; ALFWorld's have some hundred

Context = Mapping[
    str, Any
]  # state, variables {name: EntityInfo}, mapping {Placeholder: Variable}, entity_infos


@lru_cache(maxsize=4096)
def _parse_symbols(text: str) -> tuple[textgen.Symbol, ...]:
    return tuple(textgen._parse_and_convert(text, rule_name="symbols"))


@lru_cache(maxsize=1024)
def _parse_query(query: str) -> Rule:
    return Rule.parse_conjunctive_query(query)


@dataclass(frozen=True)
class _Expression:
    """`{expression}` of a grammar. `names`: of the variables it reads; `value(variables)`: what it stands for."""

    names: frozenset[str]
    value: Callable[[Mapping[str, EntityInfo]], Any]


@lru_cache(maxsize=1024)
def _read_expression(text: str) -> _Expression:
    """Raises ValueError for an expression that is more than names, their attributes, texts, `+` and `or`."""
    refused = ValueError(
        f"its grammar has the expression {{{text[:_LONGEST_EXPRESSION]}}}; only a name, name.attribute, a quoted text, + and `or` "
        "are read, for a game file must not run code"
    )
    try:
        if len(text) > _LONGEST_EXPRESSION:
            raise refused
        tree = ast.parse(text.strip(), mode="eval").body
        names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        return _Expression(names, _evaluator(tree))
    except (SyntaxError, TypeError, RecursionError, MemoryError):
        raise refused from None


def _evaluator(node: ast.expr) -> Callable[[Mapping[str, EntityInfo]], Any]:
    """Raises TypeError for what is no part of an expression."""
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
        case ast.BoolOp(op=ast.Or(), values=[first, *others]):
            first, others = _evaluator(first), list(map(_evaluator, others))
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
    """`ContextSensitiveGrammar` whose `derive` returns the same text some 50 times faster."""

    def derive(self, start: str, context: Context) -> str:
        stack = [(symbol, context) for symbol in reversed(_parse_symbols(start))]
        derived = []
        left = _MOST_SYMBOLS
        while stack:
            left -= 1
            if not left:
                raise ValueError(f"its grammar has no end at {start!r}: {_MOST_SYMBOLS:,} symbols")
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
        """The right-hand side of the first rule for `symbol` whose condition holds."""
        for rule in self._rules.get(str(symbol), ()):
            if not rule.condition or next(_matches(rule.condition, context), None) is not None:
                return rule.rhs
        raise textgen.CSGUnknownSymbolError(symbol)


def _matches(query: str, context: Context) -> Iterator[Mapping[Placeholder, Variable]]:
    return context["state"].all_assignments(_parse_query(query), context["mapping"])


def _expand(
    symbol: textgen.ConditionalSymbol, context: Context
) -> list[tuple[textgen.Symbol, Context]]:
    """`{expression | query}`: the expression once for every match of the query, in the engine's (sorted) order."""
    if not symbol.given:
        return [(symbol.expression, context)]
    infos = context["entity_infos"]
    expanded = []
    for match in _matches(symbol.given, context):
        variables = {
            **context["variables"],
            **{place.name: infos[var.name] for place, var in match.items()},
        }
        mapping = {**context["mapping"], **match}
        expanded.append(
            (symbol.expression, {**context, "variables": variables, "mapping": mapping})
        )
    return expanded


def _enumerate(
    items: list[tuple[textgen.Symbol, Context]], context: Context
) -> list[tuple[textgen.Symbol, Context]]:
    """`[items]`: "a, b, and c" with the grammar's own separators, or its word for none."""
    if not items:
        return [(textgen.NonterminalSymbol("list_empty"), context)]
    enumerated = [items[0]]
    for count, item in enumerate(items[1:], start=2):
        separator = "list_last_separator" if count == len(items) else "list_separator"
        enumerated += [(textgen.NonterminalSymbol(separator), context), item]
    return enumerated


@lru_cache(maxsize=1024)
def names_read(template: str, fluents: frozenset[str]) -> frozenset[str] | None:
    """The variables that decide what a command template derives to, or None where it can change during a game.

    `fluents` are the predicates that actions change. "go to [{r.name | receptacleatlocation(r:receptacle,
    lend:location)}]" reads r and lend, and no action moves a receptacle.
    """
    names: set[str] = set()
    for symbol in _parse_symbols(template):
        if isinstance(symbol, textgen.ListSymbol):
            symbol = symbol.symbol
        if isinstance(symbol, textgen.ConditionalSymbol):
            predicates = _parse_query(symbol.given).preconditions if symbol.given else ()
            if any(predicate.name.removeprefix("not_") in fluents for predicate in predicates):
                return None
            names.update(place.name for predicate in predicates for place in predicate.parameters)
            symbol = symbol.expression
        if isinstance(symbol, textgen.EvalSymbol):
            names.update(_read_expression(symbol.expression).names)
        elif isinstance(symbol, textgen.NonterminalSymbol):
            return None
    return frozenset(names)


# Grammars of different games differ in this string alone. The characters allowed cannot end it or mean anything in it.
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
    """The stock `GameLogic(domain, grammar)`, its grammar parsed once for all games that differ in the goal line alone."""
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
            for place, rule in enumerate(rules):
                if [str(symbol) for symbol in rule.rhs] == [_NO_GOAL]:
                    rules[place] = textgen.ProductionRule(
                        rule.lhs, goal, rule.weight, rule.condition
                    )
    return logic
