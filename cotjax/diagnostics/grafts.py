"""D5 on growing texts: a thought is grafted that contradicts what the model should do.

    unknown fact   I need the land of Ko Po. Ma Ti, I know, is the land of Ko Po.    (a guess)
    known fact     I need the land of Ko Po. So I search.

After the first the model follows the graft where it answers with what it was told to know, and is
anchored in its own knowledge where it searches. After the second it follows where it searches, and
is anchored where it answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cotjax.diagnostics.statistics import Estimate, rate
from cotjax.errors import DataError
from cotjax.formats.search import SEARCH_OPEN, Piece
from cotjax.runtime.files import write_atomic

_SIGNS = re.compile(r"[^\w\s]")
FOLLOWED, ANCHORED, OTHER = "followed", "anchored", "other"


@dataclass(frozen=True)
class Graft:
    """One grafted thought, and what the model did after it.

    known: the fact is known, and the graft says to search; else it states a guess.
    outcome: FOLLOWED, ANCHORED or OTHER (neither, such as another answer).
    """

    id: str
    known: bool
    outcome: str


def grafted(text: str, rejected: str) -> str:
    """Return the thought that contradicts a choice: all of it up to a search, which it only says.

    `text`, `rejected`: what both ways begin with, and the way that is not to be taken.
    """
    return text + rejected.partition(SEARCH_OPEN)[0].rstrip()


def outcome(piece: Piece, text: str, rejected: str, known: bool) -> str:
    """Return what a piece did after a grafted thought.

    `piece`: parsed with the thought before it. `text`, `rejected`: as of `grafted`; what the second
    names and the first does not is what the model is told to know.
    """
    searched, answer = piece.searched, _words(piece.answer or "")
    if known:
        return FOLLOWED if searched else ANCHORED if answer.strip() else OTHER
    if searched:
        return ANCHORED
    told = answer.strip() and answer in _words(rejected) and answer not in _words(text)
    return FOLLOWED if told else OTHER


def _words(text: str) -> str:
    """Return a text as words between single spaces."""
    return f" {' '.join(_SIGNS.sub(' ', text.lower()).split())} "


def write_grafts(path: Path, checkpoint: str, grafts: Iterable[Graft]) -> None:
    """Write what was measured at a checkpoint, which `checkpoint` names by its hash."""
    lines = [{"checkpoint": checkpoint, **asdict(graft)} for graft in grafts]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_grafts(path: Path) -> tuple[str, list[Graft]]:
    """Return (hash of the checkpoint, grafts); ("", []) where there are none. Raises DataError."""
    if not path.exists():
        return "", []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        hashes = {line.pop("checkpoint") for line in lines}
        return (hashes.pop() if hashes else ""), [Graft(**line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not the outcomes of grafted thoughts ({error}); delete it, and start the "
            "same command again"
        ) from None


def rates(grafts: Sequence[Graft]) -> dict[str, Estimate]:
    """Return the shares of outcomes, each fact once."""
    return {
        name: rate([each.outcome == name for each in grafts], [1] * len(grafts))
        for name in (FOLLOWED, ANCHORED)
    }
