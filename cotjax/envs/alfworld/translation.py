"""PDDL -> SAS, the slow half of loading an ALFWorld game, kept on disk by content.

Imports textworld and fast_downward, so only `alfworld_engine` imports this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fast_downward
from textworld.envs.pddl.logic import Atom
from textworld.logic import Proposition, Variable

from cotjax.errors import CotjaxError
from cotjax.runtime.files import write_atomic

_FORMAT = 1  # raised whenever the meaning of a kept translation changes
_STALE_S = 600.0  # a file that was to be written in milliseconds, and is this old, is of a process that was killed


@dataclass(frozen=True)
class Translation:
    """What the engine needs of a translated game, in JSON's own types (so that a kept one equals a fresh one).

    `sas`: the planning task for fast-downward. `types`: [name, supertype names] in the translator's order.
    `object_types`: object -> type. `parameters`: action -> [[parameter, type], ...]. `facts`: [[predicate, [object,
    ...]], ...] at the start of the game. `fluents`: the predicates that an action or an axiom can change.
    """

    sas: str
    types: list[list[Any]]
    object_types: dict[str, str]
    parameters: dict[str, list[list[str]]]
    facts: list[list[Any]]
    fluents: list[str]

    def propositions(self) -> list[Proposition]:
        kinds = self.object_types
        return [
            Proposition(name, [Variable(object_, kinds[object_]) for object_ in objects])
            for name, objects in self.facts
        ]


@contextlib.contextmanager
def _quiet_translator() -> Iterator[None]:
    """fast-downward's translator overwrites `sys.argv`, prints, and calls `sys.exit` on bad PDDL (here: ValueError)."""
    argv = sys.argv
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except SystemExit as error:
        raise ValueError(f"the PDDL translator gave up: {error}") from error
    finally:
        sys.argv = argv


def translate_for_planner(domain: str, problem: str) -> str:
    """The SAS task, pruned, on which fast-downward searches for a plan."""
    with _quiet_translator():
        return fast_downward.pddl2sas(domain, problem, optimize=True)[1]


def translate(domain: str, problem: str, downward_lib) -> Translation:
    """Translate a game; `downward_lib` is left with its SAS task loaded. Some 0.1 s to 1 s, by the size of the room."""
    with _quiet_translator():
        task, sas = fast_downward.pddl2sas(domain, problem)
    object_types = {object_.name: object_.type_name for object_ in task.objects}
    downward_lib.load_sas(sas.encode("utf-8"))
    atoms = (Atom * downward_lib.get_state_size())()
    downward_lib.get_state(atoms)
    now = [atom.get_fact(object_types) for atom in atoms]
    facts = list(filter(None, map(_initial_fact, task.init)))
    facts += [
        [fact.name, [var.name for var in fact.arguments]] for fact in now if not fact.is_negation
    ]
    changed = {effect.literal.predicate for action in task.actions for effect in action.effects}
    return Translation(
        sas=sas,
        types=[[type_.name, list(type_.supertype_names)] for type_ in task.types],
        object_types=object_types,
        parameters={
            action.name: [[p.name, p.type_name] for p in action.parameters]
            for action in task.actions
        },
        facts=facts,
        fluents=sorted(changed | {axiom.name for axiom in task.axioms}),
    )


def _initial_fact(atom) -> list[Any] | None:
    """A fact of the problem's `:init`, or None for equality, costs and distances, which the game's texts never ask about."""
    pddl = fast_downward.translate.pddl
    if isinstance(atom, pddl.conditions.Atom) and atom.predicate != "=":
        return [atom.predicate, list(atom.args)]
    if isinstance(atom, pddl.f_expression.Assign) and atom.fluent.symbol != "total-cost":
        value = str(atom.expression.value)
        return None if value.isdigit() else [value, list(atom.fluent.args)]
    return None


class TranslationStore:
    """Translations on disk, one file a game, named by the content of its PDDL (9 to 80 kB each).

    A file that is damaged is made again. Where the folder cannot be written, games are translated every time.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)
        self._maker = f"{_FORMAT} {version('fast-downward-textworld')} {version('textworld')}"

    def get(self, domain: str, problem: str, downward_lib) -> Translation:
        name = hashlib.sha256("\0".join((self._maker, domain, problem)).encode("utf-8")).hexdigest()
        path = self._folder / name[:2] / f"{name}.sas.z"
        kept = _read(path)
        if kept is None:
            kept = translate(domain, problem, downward_lib)
            _write(path, kept)
        return kept


def _read(path: Path) -> Translation | None:
    try:
        return Translation(**json.loads(zlib.decompress(path.read_bytes())))
    except (
        OSError,
        zlib.error,
        ValueError,
        TypeError,
    ):  # absent, cut short (zlib keeps a checksum), not ours
        return None


def _write(path: Path, translation: Translation) -> None:
    packed = zlib.compress(
        json.dumps(asdict(translation), separators=(",", ":")).encode("utf-8"), 6
    )
    # A full or read-only disk costs time, not correctness.
    with contextlib.suppress(OSError, CotjaxError):
        for left in path.parent.glob(".*.partial"):
            if time.time() - left.stat().st_mtime > _STALE_S:
                left.unlink(missing_ok=True)
        write_atomic(path, packed)
