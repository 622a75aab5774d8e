"""PDDL to SAS, the slow half of loading an ALFWorld game, cached on disk by content.

Imports textworld and fast_downward, so only `engine` imports this module.
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

_FORMAT = 2  # increased whenever the meaning of a cached translation changes
# Writing a file takes milliseconds: a partial one of this age is left from a killed process.
_STALE_S = 600.0


@dataclass(frozen=True)
class Translation:
    """A translated game in JSON's own types, so that a cached one equals a fresh one.

    Attributes:
      packed: the planning task for fast-downward, compressed: as text it takes most of a game's
        memory, 0.4 to 2 MB.
      types: [name, supertype names] in the translator's order.
      object_types: object -> type.
      parameters: action -> [[parameter, type], …].
      facts: [[predicate, [object, …]], …] at the start of the game.
      fluents: the predicates that an action or an axiom can change.
    """

    packed: bytes
    types: list[list[Any]]
    object_types: dict[str, str]
    parameters: dict[str, list[list[str]]]
    facts: list[list[Any]]
    fluents: list[str]

    @property
    def sas(self) -> bytes:
        """The planning task."""
        return zlib.decompress(self.packed)

    def propositions(self) -> list[Proposition]:
        kinds = self.object_types
        return [
            Proposition(name, [Variable(object_, kinds[object_]) for object_ in objects])
            for name, objects in self.facts
        ]


@contextlib.contextmanager
def _quiet_translator() -> Iterator[None]:
    """Contain fast-downward's translator.

    It overwrites `sys.argv`, prints, and calls `sys.exit` on bad PDDL, which becomes ValueError.
    """
    argv = sys.argv
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except SystemExit as error:
        raise ValueError(f"the PDDL translator gave up: {error}") from error
    finally:
        sys.argv = argv


def translate_for_planner(domain: str, problem: str) -> str:
    """Return the pruned SAS task on which fast-downward searches for a plan."""
    with _quiet_translator():
        return fast_downward.pddl2sas(domain, problem, optimize=True)[1]


def translate(domain: str, problem: str, downward_lib) -> Translation:
    """Translate a game and load its SAS task into `downward_lib`: 0.1 s to 1 s, by room size."""
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
        packed=zlib.compress(sas.encode("utf-8"), 6),
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
    """Return a fact of the problem's `:init`; None for equality, costs and distances.

    The game's texts never ask about those.
    """
    pddl = fast_downward.translate.pddl
    if isinstance(atom, pddl.conditions.Atom) and atom.predicate != "=":
        return [atom.predicate, list(atom.args)]
    if isinstance(atom, pddl.f_expression.Assign) and atom.fluent.symbol != "total-cost":
        value = str(atom.expression.value)
        return None if value.isdigit() else [value, list(atom.fluent.args)]
    return None


class TranslationStore:
    """Translations on disk: one file per game (9 to 80 kB), named by the content of its PDDL.

    A file is two compressed parts: JSON, with a checksum of the other one, and the planning task.

    A damaged file is made again. If the folder cannot be written, games are translated every time.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)
        self._maker = f"{_FORMAT} {version('fast-downward-textworld')} {version('textworld')}"

    def get(self, domain: str, problem: str, downward_lib) -> Translation:
        name = hashlib.sha256("\0".join((self._maker, domain, problem)).encode("utf-8")).hexdigest()
        path = self._folder / name[:2] / f"{name}.sas.z"
        translation = _read(path)
        if translation is None:
            translation = translate(domain, problem, downward_lib)
            _write(path, translation)
        return translation


def _read(path: Path) -> Translation | None:
    try:
        head = zlib.decompressobj()
        fields = json.loads(head.decompress(path.read_bytes()))
        packed = head.unused_data
        if fields.pop("checksum") != zlib.crc32(packed):
            return None
        return Translation(packed=packed, **fields)
    # Absent, cut short (zlib has a checksum), or not a translation.
    except (OSError, zlib.error, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(path: Path, translation: Translation) -> None:
    fields = asdict(translation)
    packed = fields.pop("packed")
    fields["checksum"] = zlib.crc32(packed)
    head = zlib.compress(json.dumps(fields, separators=(",", ":")).encode("utf-8"), 6)
    # A full or read-only disk costs time, not correctness.
    with contextlib.suppress(OSError, CotjaxError):
        for left in path.parent.glob(".*.partial"):
            if time.time() - left.stat().st_mtime > _STALE_S:
                left.unlink(missing_ok=True)
        write_atomic(path, head + packed)
