"""ALFWorld's text grammar: the stock engine's texts, without parsing and copying the grammar at every step.

Imports textworld, so only `alfworld_engine` imports this module. The stock grammar parses the start text of every
derivation and copies every symbol with its whole context; here the parsed symbols are shared and never modified, and a
context is a dict that nobody writes to. What is derived, and in which order, is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from textworld.envs.pddl import logic as pddl_logic
from textworld.envs.pddl import textgen
from textworld.logic import Placeholder, Rule, TypeHierarchy, Variable

Context = Mapping[str, Any]  # state, variables {name: EntityInfo}, mapping {Placeholder: Variable}, entity_infos


@lru_cache(maxsize=4096)
def _parse_symbols(text: str) -> tuple[textgen.Symbol, ...]:
    return tuple(textgen._parse_and_convert(text, rule_name="symbols"))


@lru_cache(maxsize=1024)
def _parse_query(query: str) -> Rule:
    return Rule.parse_conjunctive_query(query)


@lru_cache(maxsize=1024)
def _compile(expression: str):
    return compile(expression.strip(), "<grammar>", "eval")


class CachedGrammar(textgen.ContextSensitiveGrammar):
    """`ContextSensitiveGrammar` whose `derive` returns the same text some 50 times faster."""

    def derive(self, start: str, context: Context) -> str:
        stack = [(symbol, context) for symbol in reversed(_parse_symbols(start))]
        derived = []
        while stack:
            symbol, context = stack.pop()
            if isinstance(symbol, textgen.TerminalSymbol):
                derived.append(str(symbol))
            elif isinstance(symbol, textgen.EvalSymbol):
                derived.append(str(eval(_compile(symbol.expression), {}, context["variables"])))
            elif isinstance(symbol, textgen.NonterminalSymbol):
                stack.extend((part, context) for part in reversed(self._production(symbol, context)))
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


def _expand(symbol: textgen.ConditionalSymbol, context: Context) -> list[tuple[textgen.Symbol, Context]]:
    """`{expression | query}`: the expression once for every match of the query, in the engine's (sorted) order."""
    if not symbol.given:
        return [(symbol.expression, context)]
    infos = context["entity_infos"]
    expanded = []
    for match in _matches(symbol.given, context):
        variables = {**context["variables"], **{place.name: infos[var.name] for place, var in match.items()}}
        mapping = {**context["mapping"], **match}
        expanded.append((symbol.expression, {**context, "variables": variables, "mapping": mapping}))
    return expanded


def _enumerate(items: list[tuple[textgen.Symbol, Context]], context: Context) -> list[tuple[textgen.Symbol, Context]]:
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
            names.update(_compile(symbol.expression).co_names)
        elif isinstance(symbol, textgen.NonterminalSymbol):
            return None
    return frozenset(names)


# Grammars of different games differ in this string alone. The characters allowed cannot end it or mean anything in it.
_GOAL = re.compile(r"""(?<=")Your task is to: ([A-Za-z0-9 ,'-]+)\.(?=")""")
_NO_GOAL = "Your task is to: UNKNOWN GOAL."


@lru_cache(maxsize=16)
def _parse_document(grammar: str) -> tuple[dict[str, pddl_logic.Action], textgen.ContextSensitiveGrammar]:
    return pddl_logic._parse_and_convert(grammar, rule_name="pddlStart")


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
                    rules[place] = textgen.ProductionRule(rule.lhs, goal, rule.weight, rule.condition)
    return logic
