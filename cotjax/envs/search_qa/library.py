"""The files of a folder of questions, and the corpus that an environment searches.

manifest.json    the request, with the source of the facts, and the hashes of the other files
NOTICE           the licences of real facts
corpus.jsonl     passages, in the order of ids: title, text, held_out
facts.jsonl      facts, with the passage of each and whether it is known
known.json       facts that a model was found to know, in place of those
<split>.jsonl    questions
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cotjax.envs.search_qa.bm25 import BM25
from cotjax.errors import DataError
from cotjax.runtime.files import read_json, sha256_of, write_atomic

CORPUS, FACTS, MANIFEST, NOTICE = "corpus.jsonl", "facts.jsonl", "manifest.json", "NOTICE"
OWN = "known.json"
_ADVICE = "make the questions again with `cotjax games make --world search_qa`"


@dataclass(frozen=True)
class Page:
    """A passage as it is shown."""

    title: str
    text: str


class Retriever(Protocol):
    """Finds passages for queries."""

    def search(self, query: str, split: str, k: int) -> list[Page]:
        """Return the at most `k` best passages for a question of `split`, best first."""


class Corpus:
    """The passages of a folder behind a BM25 index.

    Args:
      pages: all passages, in the order of ids.
      held_out: ids of the pages of held-out entities. A search of a training question leaves them
        out, so that training shows none of their text.
    """

    def __init__(self, pages: Sequence[Page], held_out: Sequence[int]):
        self.pages = pages
        self._held_out = np.array(held_out, np.int64)
        self._index = BM25([f"{page.title} {page.text}" for page in pages])

    def search(self, query: str, split: str, k: int) -> list[Page]:
        """Return the at most `k` best passages with a word of the query, best first."""
        hidden = self._held_out if split == "train" else None
        return [self.pages[id_] for id_ in self._index.top(query, k, hidden)]


@dataclass(frozen=True)
class QuestionRecord:
    """A question as its file has it. `corpus`: SHA-256 of the corpus that it was made for."""

    id: str
    task_type: str
    text: str
    answers: tuple[str, ...]
    corpus: str


def source_of(folder: Path) -> str | None:
    """Return the first word of the source of a folder's facts; None without a manifest."""
    if not (folder / MANIFEST).exists():
        return None
    source = str(read_json(folder / MANIFEST, "cotjax games make").get("source", ""))
    return re.split(r"\W", source, maxsplit=1)[0]


def seed_of(folder: Path) -> int:
    """Return the seed that a folder was made with. Raises DataError."""
    return int(read_json(folder / MANIFEST, "cotjax games make").get("seed", 0))


@lru_cache(maxsize=2)
def load_corpus(folder: Path) -> tuple[Corpus, str]:
    """Return the corpus of a folder and its SHA-256. Raises DataError."""
    file = folder / CORPUS
    pages: list[Page] = []
    held_out: list[int] = []
    for number, line in read_lines(file):
        try:
            page = Page(str(line["title"]), str(line["text"]))
            if line["held_out"]:
                held_out.append(len(pages))
        except KeyError as error:
            raise DataError(f"{file}:{number}: no field {error}; {_ADVICE}") from error
        pages.append(page)
    return Corpus(pages, held_out), sha256_of(file)


@lru_cache(maxsize=2)
def load_known(folder: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the known facts of a folder, (subject, relation) -> objects. Raises DataError."""
    file = folder / FACTS
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    own = own_facts(folder)
    for number, line in read_lines(file):
        try:
            key = line["subject"], line["relation"]
            if line["known"] if own is None else key in own[1]:
                known[line["subject"], line["relation"]] = tuple(line["objects"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{file}:{number}: not a fact ({type(error).__name__}: {error}); {_ADVICE}"
            ) from error
    return known


def own_facts(folder: Path) -> tuple[dict[str, Any], set[tuple[str, str]]] | None:
    """Return (what was asked, the facts that a model knows by itself) of a folder; None for none.

    Raises DataError where the file cannot be read.
    """
    file = folder / OWN
    if not file.exists():
        return None
    kept = read_json(file, "cotjax autocoa")
    try:
        return kept["asked"], {(str(subject), str(relation)) for subject, relation in kept["facts"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: not the facts that a model knows ({error}); delete it, and start the same "
            "command again"
        ) from None


def keep_own_facts(
    folder: Path, asked: Mapping[str, Any], facts: Iterable[tuple[str, str]]
) -> None:
    """Keep the facts that a model knows by itself, in place of the folder's known ones."""
    content = {"asked": asked, "facts": sorted(facts)}
    write_atomic(folder / OWN, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    load_known.cache_clear()


@lru_cache(maxsize=8)
def load_questions(file: Path) -> dict[str, QuestionRecord]:
    """Return the questions of a split's file by id. Raises DataError."""
    questions: dict[str, QuestionRecord] = {}
    for number, line in read_lines(file):
        try:
            record = QuestionRecord(
                str(line["id"]),
                str(line["task_type"]),
                str(line["question"]),
                tuple(map(str, line["answers"])),
                str(line["corpus"]),
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{file}:{number}: not a question ({type(error).__name__}: {error}); {_ADVICE}"
            ) from error
        if not record.answers or record.id in questions:
            problem = "an id of an earlier line" if record.answers else "a question without answer"
            raise DataError(f"{file}:{number}: {problem}; {_ADVICE}")
        questions[record.id] = record
    return questions


def read_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file. Raises DataError."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {_ADVICE}") from error
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                content = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: invalid JSON: {error}; {_ADVICE}") from error
            if not isinstance(content, dict):
                raise DataError(f"{file}:{number}: not a JSON object; {_ADVICE}")
            yield number, content
