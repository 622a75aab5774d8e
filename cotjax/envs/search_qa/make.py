"""Make the files of a folder of questions; the same request gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cotjax.envs.base import Game
from cotjax.envs.making import check_request
from cotjax.envs.search_qa.generate import ALL_SPLITS, TASK_TYPES, Asked, Generator
from cotjax.envs.search_qa.library import CORPUS, FACTS, MANIFEST, NOTICE, load_questions
from cotjax.envs.search_qa.pages import Passage, write_pages
from cotjax.envs.search_qa.schema import Fact, Knowledge
from cotjax.errors import UsageError
from cotjax.runtime.files import read_json, sha256_of, write_atomic

GENERATOR = "search_qa 2"  # increased whenever the same seed would give other bytes


def make_questions(
    out: Path,
    counts: Mapping[str, Mapping[str, int]],
    seed: int,
    source: str,
    knowledge_of: Callable[[int], Knowledge],
    notice: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Game]:
    """Make `counts[split][task_type]` questions and their corpus in `out`.

    Question k of a split and task type does not depend on the number of questions.

    Args:
      source: what the facts are, in the manifest.
      knowledge_of: returns the facts of a seed.
      notice: what their licences ask to be said; "" for nothing.

    Raises:
      UsageError: an impossible request, one that differs from the files in `out`, or more questions
        than the world has.
    """
    check_request(counts, seed, ALL_SPLITS, TASK_TYPES, "questions")
    wanted = {split: counts[split] for split in ALL_SPLITS if sum(counts.get(split, {}).values())}
    request = {"generator": GENERATOR, "source": source, "seed": seed, "counts": counts}
    if (kept := _kept(out, json.loads(json.dumps(request)))) is not None:
        return kept
    knowledge = knowledge_of(seed)
    passages = write_pages(knowledge, seed)
    files = {CORPUS: _lines(map(_passage_line, passages))}
    corpus = hashlib.sha256(files[CORPUS]).hexdigest()
    where = {fact: passage.id for passage in passages for fact in passage.facts}
    files[FACTS] = _lines(_fact_line(fact, where) for fact in knowledge.facts)
    if notice:
        files[NOTICE] = notice.encode()
    generator = Generator(knowledge, passages, seed)
    games: list[Game] = []
    total = sum(sum(types.values()) for types in wanted.values())
    for split, types in wanted.items():
        lines: list[dict[str, Any]] = []
        for task_type, count in types.items():
            asked = list(islice(generator.draw(split, task_type), count))
            if len(asked) < count:
                raise UsageError(
                    f"{source} has {len(asked):,} {split} questions of {task_type} for seed "
                    f"{seed}, and {count:,} are asked for: ask for fewer"
                )
            lines += (_question_line(knowledge, where, corpus, task_type, each) for each in asked)
            if progress is not None:
                progress(len(games) + len(lines), total)
        lines.sort(key=lambda line: line["id"])
        files[f"{split}.jsonl"] = _lines(lines)
        path = str(out / f"{split}.jsonl")
        games += (Game(line["id"], path, split, line["task_type"]) for line in lines)
    request["sha256"] = {name: hashlib.sha256(text).hexdigest() for name, text in files.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(out / name, content)
    write_atomic(out / MANIFEST, json.dumps(request, indent=1) + "\n")
    return games


def _kept(out: Path, request: dict[str, Any]) -> list[Game] | None:
    """Return the games that an earlier call of the same request made, if their files are whole.

    Raises UsageError if the folder holds the files of another request.
    """
    if not (out / MANIFEST).exists():
        return None
    held = read_json(out / MANIFEST, "cotjax games make")
    differing = [name for name, value in request.items() if held.get(name) != value]
    if differing:
        raise UsageError(
            f"the questions in {out} were made with another {' and '.join(differing)}: "
            "choose another folder"
        )
    hashes = held["sha256"]
    if any(not (out / name).is_file() or sha256_of(out / name) != hashes[name] for name in hashes):
        return None
    files = [(split, out / f"{split}.jsonl") for split in ALL_SPLITS]
    return [
        Game(id_, str(file), split, question.task_type)
        for split, file in files
        if file.name in hashes
        for id_, question in sorted(load_questions(file).items())
    ]


def _passage_line(passage: Passage) -> dict[str, Any]:
    return {"title": passage.title, "text": passage.text, "held_out": passage.held_out}


def _fact_line(fact: Fact, where: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    return {
        "subject": fact.subject,
        "relation": fact.relation,
        "objects": fact.objects,
        "known": fact.known,
        "passage": where[fact.key],
    }


def _question_line(
    knowledge: Knowledge,
    passages: Mapping[tuple[str, str], int],
    corpus: str,
    task_type: str,
    asked: Asked,
) -> dict[str, Any]:
    name = hashlib.sha256(f"{corpus} {asked.question.key}".encode()).hexdigest()[:16]
    facts = [knowledge.by_key[key] for key in asked.used]
    return {
        "id": f"{task_type}-{name}",
        "task_type": task_type,
        "question": asked.text,
        "answers": asked.answers,
        "query": asked.question.key,
        "facts": [[fact.subject, fact.relation, fact.known, passages[fact.key]] for fact in facts],
        "corpus": corpus,
    }


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
