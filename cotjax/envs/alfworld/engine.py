"""A fast PDDL engine for ALFWorld with the stock engine's texts, commands, facts and wins.

Importing this module imports textworld and alfworld, so only `AlfworldEnv`'s constructor does it.
The installed packages are not changed; the subclasses here override the slow parts of the stock
engine (9 steps a second):

* the command of an operator is derived once per game, not at every step;
* the text grammar is parsed once per process, and a derivation copies nothing (`grammar`);
* PDDL is translated once per game and cached in memory and on disk (`translation`);
* the planner's own translation is made only when a plan is requested.

Not thread safe: the translator keeps its options in module globals.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fast_downward
import mementos.core
from textworld.core import EnvInfos, GameState
from textworld.envs.pddl.logic import GameLogic, PddlState
from textworld.envs.pddl.pddl import PddlEnv
from textworld.generator.game import EntityInfo
from textworld.logic import Action, Placeholder, Proposition, Rule, Signature, Type, Variable

from cotjax.envs.alfworld.grammar import names_read, parse_logic
from cotjax.envs.alfworld.translation import Translation, TranslationStore, translate_for_planner

# Facts in textworld's cache. A game adds some 240, and a process with many of them is 50 MB larger.
_MEMENTO_CAPACITY = 2_000
# glibc's; other C libraries have none.
_give_back_freed = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
_GAME_FIELDS = ("pddl_domain", "grammar", "pddl_problem")


def _import_demangler() -> type:
    """Return alfworld's `Demangler` without the side effects of its import.

    Those are a new cache folder, and `ALFWORLD_DATA` set.
    """
    if "alfworld" not in sys.modules:
        users = os.environ.get("ALFWORLD_DATA")
        # This folder exists, so alfworld creates none.
        os.environ["ALFWORLD_DATA"] = tempfile.gettempdir()
        try:
            import alfworld.info

            alfworld.info.ALFWORLD_DATA = alfworld.ALFWORLD_DATA = (
                users or alfworld.info._default_alfworld_cache
            )
        finally:
            if users is None:
                del os.environ["ALFWORLD_DATA"]
            else:
                os.environ["ALFWORLD_DATA"] = users
    from alfworld.agents.utils.misc import Demangler

    return Demangler


_Demangler = _import_demangler()


@dataclass
class GameEntry:
    """One game's data that is constant during play, shared by all environments of the process.

    Attributes:
      actions: operator name -> action, filled as operators appear.
      commands: operator id -> command, for commands that cannot change during a game.
      derived: (action name, objects that its command names) -> command.
      first: textworld's index of the facts that a game begins with.
      intro: the game's first text.
    """

    logic: GameLogic
    problem: str
    translation: Translation
    facts: list[Proposition]
    entity_infos: dict[str, EntityInfo]
    fluents: frozenset[str]
    actions: dict[str, Action] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    derived: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)
    first: (
        tuple[
            dict[Signature, set[Proposition]],
            dict[str, Variable],
            dict[str, set[Variable]],
            Counter[str],
        ]
        | None
    ) = None
    intro: str | None = None

    def action(self, operator_name: str, operator_id: int) -> Action:
        """Return the textworld action of an operator named "action argument argument …"."""
        known = self.actions.get(operator_name)
        if known is None:
            name, *arguments = operator_name.split()
            known = Action(name=name, preconditions=[], postconditions=[])
            known.id = operator_id
            # The action's own parameters come first, then those of its quantifiers.
            parameters = self.translation.parameters[name]
            known.mapping = {
                Placeholder(parameter.strip("?"), type_): Variable(argument, type_)
                for (parameter, type_), argument in zip(parameters, arguments, strict=False)
            }
            known.command_template = self.logic.actions[name].template
            known.feedback_rule = self.logic.actions[name].feedback_rule
            self.actions[operator_name] = known
        return known


def _make_entry(data: dict[str, Any], store: TranslationStore, downward_lib) -> GameEntry:
    logic = parse_logic(data["pddl_domain"], data["grammar"])
    translation = store.get(data["pddl_domain"], data["pddl_problem"], downward_lib)
    for name, supertypes in translation.types:
        # The translator lists "object" twice; the first one counts.
        if name not in logic.types._types:
            logic.types.add(Type(name, supertypes))
    facts = translation.propositions()
    entity_infos = {
        var.name: EntityInfo(var.name, var.type) for fact in facts for var in fact.arguments
    }
    names = _Demangler(game_infos=entity_infos, shuffle=False)
    for info in entity_infos.values():
        info.name, info.definite, info.indefinite = names.demangle_alfred_name(info.id), "the", "a"
    return GameEntry(
        logic,
        data["pddl_problem"],
        translation,
        facts,
        entity_infos,
        frozenset(translation.fluents),
    )


def _forget_mementos() -> None:
    """Clear textworld's cache of facts. Facts compare by value, so nothing depends on it."""
    cache = getattr(mementos.core, "_memento_cache", {})
    if len(cache) > _MEMENTO_CAPACITY:
        cache.clear()


class CachedState(PddlState):
    """`PddlState` from a cached translation. The library holds the state; the facts mirror it."""

    def __init__(self, downward_lib, entry: GameEntry):
        self._logic = entry.logic
        self._entry = entry
        # Predicate name -> its `_candidates`.
        self._sorted: dict[str, dict[Signature, list[Proposition]]] = {}
        self._planner_ready = False
        self.downward_lib = downward_lib
        self.pddl_problem = entry.problem
        self.name2type = entry.translation.object_types
        downward_lib.load_sas(entry.translation.sas)
        if entry.first is None:
            self._take_index({}, {}, {}, Counter())
            self.add_facts(entry.facts)
            entry.first = self._facts, self._vars_by_name, self._vars_by_type, self._var_counts
        self._take_index(*entry.first)

    def _take_index(self, facts, vars_by_name, vars_by_type, var_counts) -> None:
        """Copy these tables, which are those of textworld's State."""
        self._facts = defaultdict(set, {signature: set(held) for signature, held in facts.items()})
        self._vars_by_name = dict(vars_by_name)
        self._vars_by_type = defaultdict(
            set, {type_: set(held) for type_, held in vars_by_type.items()}
        )
        self._var_counts = var_counts.copy()

    def all_applicable_actions(self) -> list[Action]:
        operators = (fast_downward.Operator * self.downward_lib.get_applicable_operators_count())()
        self.downward_lib.get_applicable_operators(operators)
        self._operators = {operator.id: operator for operator in operators}
        first: dict[str, Any] = {}
        for operator in operators:
            first.setdefault(operator.name, operator)
        return [self._entry.action(name, operator.id) for name, operator in first.items()]

    def add_fact(self, prop: Proposition) -> None:
        super().add_fact(prop)
        self._sorted.pop(prop.name, None)

    def remove_fact(self, prop: Proposition) -> None:
        super().remove_fact(prop)
        self._sorted.pop(prop.name, None)

    def all_assignments(
        self, rule: Rule, mapping: Mapping[Placeholder, Variable]
    ) -> Iterator[dict[Placeholder, Variable]]:
        """Yield every assignment that makes a query true, in the stock order.

        Two placeholders never share an object.
        """
        return self._assign(rule.preconditions, mapping)

    def _assign(self, predicates, mapping) -> Iterator[dict[Placeholder, Variable]]:
        if not predicates:
            yield dict(mapping)
            return
        for fact in self._candidates(predicates[0].signature):
            extended = mapping
            for slot, var in zip(predicates[0].parameters, fact.arguments, strict=True):
                if slot in extended:
                    if extended[slot] != var:
                        break
                elif var in extended.values():
                    break
                else:
                    extended = {**extended, slot: var}
            else:
                yield from self._assign(predicates[1:], extended)

    def _candidates(self, signature: Signature) -> list[Proposition]:
        """Return the facts that may be instances of a predicate, sorted within each subtype."""
        known = self._sorted.setdefault(signature.name, {})
        if signature not in known:
            types = self._logic.types
            known[signature] = [
                fact
                for subtypes in types.multi_subtypes([types.get(name) for name in signature.types])
                for fact in sorted(
                    self.facts_with_signature(
                        Signature(signature.name, [type_.name for type_ in subtypes])
                    ),
                    key=lambda fact: [(var.name, var.type) for var in fact.arguments],
                )
            ]
        return known[signature]

    def replan(self, infos) -> list[str]:
        if not self._planner_ready:
            sas = translate_for_planner(self._logic.domain, self.pddl_problem)
            self.downward_lib.load_sas_replan(sas.encode("utf-8"))
            self._actions = {
                name: SimpleNamespace(
                    parameters=[SimpleNamespace(name=parameter) for parameter, _ in parameters]
                )
                for name, parameters in self._entry.translation.parameters.items()
            }
            self._planner_ready = True
        return super().replan(infos)


class CachedPddlEnv(PddlEnv):
    """`PddlEnv` for game files, with ALFWorld's object names (as `AlfredDemangler` adds them).

    `step` is the stock one. An object holds 3.3 MB of library that is never freed: keep objects,
    and `load` other games into them.
    """

    _entries: ClassVar[OrderedDict[str, GameEntry]] = OrderedDict()

    def __init__(self, infos: EnvInfos, cache_dir: str | os.PathLike, games_kept: int = 32):
        super().__init__(infos)
        self._games_kept = games_kept
        self._store = TranslationStore(cache_dir)

    def load(self, filename: str) -> None:
        """Load a game file. Raises OSError, or any error of the parsers for a broken file."""
        content = Path(filename).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entry = self._entries.pop(digest, None)
        if entry is None:
            data = json.loads(content)
            for name in _GAME_FIELDS:
                if not isinstance(data, dict) or not isinstance(data.get(name), str):
                    raise ValueError(f"it has no {name!r}")
            _forget_mementos()
            entry = _make_entry(data, self._store, self.downward_lib)
        self._entries[digest] = entry
        while len(self._entries) > self._games_kept:
            self._entries.popitem(last=False)
        self._entry = entry
        self._logic = entry.logic
        self._entity_infos = entry.entity_infos

    @classmethod
    def forget(cls) -> None:
        """Drop the games cached in this process; those on disk stay, and games in play continue."""
        cls._entries.clear()

    def reset(self) -> GameState:
        new = self._entry.first is None
        self._pddl_state = CachedState(self.downward_lib, self._entry)
        if new:
            # The planning tasks of games have 5 to 15 MB: a small one leaves a large one's gaps.
            _give_back_freed(0)
        self.prev_state = None
        self.state = GameState()
        self._last_action = None
        self._moves = 0
        if self._entry.intro is None:
            self._entry.intro = self._logic.grammar.derive("#intro#", self._context({}))
        self.state.feedback = self._entry.intro
        self.state.raw = self.state.feedback
        self._gather_infos()
        return self.state

    def _context(self, mapping: dict[Placeholder, Variable]) -> dict[str, Any]:
        return {
            "state": self._pddl_state,
            "variables": {slot.name: self._entity_infos[var.name] for slot, var in mapping.items()},
            "mapping": mapping,
            "entity_infos": self._entity_infos,
        }

    def _command(self, action: Action) -> str:
        entry = self._entry
        command = entry.commands.get(action.id)
        if command is not None:
            return command
        read = names_read(action.command_template, entry.fluents)
        if read is None:
            return self._logic.grammar.derive(
                action.command_template, self._context(action.mapping)
            )
        key = (
            action.name,
            tuple(var.name for slot, var in action.mapping.items() if slot.name in read),
        )
        if key not in entry.derived:
            entry.derived[key] = self._logic.grammar.derive(
                action.command_template, self._context(action.mapping)
            )
        entry.commands[action.id] = entry.derived[key]
        return entry.derived[key]

    def _gather_infos(self) -> None:
        state = self.state
        state["won"] = self._pddl_state.check_goal()
        state["lost"] = False
        state["_valid_actions"] = self._pddl_state.all_applicable_actions()
        state["_valid_commands"] = [self._command(action) for action in state["_valid_actions"]]
        state["admissible_commands"] = sorted(set(state["_valid_commands"]))
        if self.request_infos.facts:
            state["facts"] = [
                self._get_human_readable_fact(fact) for fact in self._pddl_state.facts
            ]
        if self.request_infos.policy_commands:
            state["policy_commands"] = self._pddl_state.replan(self._entity_infos)
