"""What an episode's searches and answer were worth, against what its questions' facts say.

A state is judged by the facts that are known or were read in a result: either the question follows
from them, or a fact is missing. A search is needed if a fact is missing and the query names its
subject. The oracle searches for missing facts alone, and answers when none is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from cotjax.envs.base import Game, SearchCounts
from cotjax.envs.search_qa.bm25 import words_of
from cotjax.envs.search_qa.env import ANSWER, LIMIT, SEARCH, parse_action
from cotjax.envs.search_qa.library import FACTS, load_known, load_questions, read_lines
from cotjax.envs.search_qa.questions import Key, Question, Solution, parse_question, solve
from cotjax.envs.search_qa.schema import Schema
from cotjax.envs.search_qa.scoring import exact_match, f1, normalize
from cotjax.envs.search_qa.solver import facts_in

Facts = Mapping[Key, tuple[str, ...]]
_RESULT = re.compile(r"result (\d+): ([^:]*): (.*?)(?=\s*result \d+: |\s*</search_result>|$)", re.S)
# A word-level tokenizer decodes what a model wrote with a space before these signs.
_SPACED = re.compile(r"\s+([:.,?])")


@lru_cache(maxsize=2)
def load_true(folder: Path) -> dict[Key, tuple[str, ...]]:
    """Return all facts of a folder, (subject, relation) -> objects."""
    lines = (line for _, line in read_lines(folder / FACTS))
    return {(line["subject"], line["relation"]): tuple(line["objects"]) for line in lines}


def judge(
    game: Game, schema: Schema, task: str, seen: Sequence[str], actions: Sequence[str]
) -> SearchCounts:
    """Return the counts of an episode.

    Args:
      task: the question, as the environment gave it.
      seen: what was seen before each action.
      actions: what the environment received; "" where the response was invalid.

    Raises:
      DataError: the folder of the game is broken.
      EnvError: the question has another wording than the world's.
    """
    folder = Path(game.path).parent
    question, known, true = parse_question(task, schema), load_known(folder), load_true(folder)
    facts, counts = dict(known), SearchCounts()
    queries: set[tuple[str, ...]] = set()
    used = solve(question, true).used
    counts.facts, counts.oracle = len(used), sum(key not in known for key in used)
    golds = load_questions(Path(game.path))[game.id].answers
    context = ""
    wanted: Key | None = None  # the missing fact that the last search was for
    for text, action in zip(seen, actions, strict=True):
        text = _SPACED.sub(r"\1", text)
        context += f" {text}"
        counts.refused += LIMIT in text
        read = _read(text, schema)
        _compare(counts, read, known, true)
        # What was read counts as it was read, be it true or not.
        facts.update({key: read[key] for key in read if key not in facts})
        solution = _solve(question, facts)
        counts.found += wanted is not None and wanted in read
        wanted, asked = None, parse_action(action)
        if asked.kind != SEARCH:
            counts.missed += solution.missing is not None
            counts.settled += solution.missing is None
        else:
            words = tuple(words_of(asked.text))
            counts.repeated += words in queries
            queries.add(words)
            counts.searches += 1
            if solution.missing is not None and _names(words, solution.missing[0]):
                counts.needed += 1
                wanted = solution.missing
            else:
                counts.needless += 1
        if asked.kind == ANSWER and asked.problem is None:
            counts.answered = 1
            counts.exact = int(exact_match(asked.text, golds))
            counts.f1 = f1(asked.text, golds)
    had = [facts.get(key) == true[key] for key in used]
    counts.reached = had.index(False) if False in had else len(had)
    shown = f" {normalize(context)} "
    counts.gold_seen = int(any(f" {normalize(gold)} " in shown for gold in golds))
    return counts


def _solve(question: Question, facts: Facts) -> Solution:
    """As `solve`; results that a model made up may hold no numbers where there should be some."""
    try:
        return solve(question, facts)
    except ValueError:
        return Solution((), (), None)


def _read(text: str, schema: Schema) -> dict[Key, tuple[str, ...]]:
    """Return the facts that the results in an observation state."""
    found: dict[Key, tuple[str, ...]] = {}
    for _, _, body in _RESULT.findall(text):
        found |= {key: own for key, own in facts_in(body, schema).items() if key not in found}
    return found


def _compare(counts: SearchCounts, read: Facts, known: Facts, true: Facts) -> None:
    """Count what the results state: of known facts, of others, and of nothing that there is."""
    for key, objects in read.items():
        right = true.get(key) == objects
        if key not in true:
            counts.invented += 1
        elif key in known:
            counts.stated_known += 1
            counts.right_known += right
        else:
            counts.stated_unknown += 1
            counts.right_unknown += right


def _names(words: Sequence[str], subject: str) -> bool:
    """Return whether a query has all words of a name."""
    return set(words_of(subject)) <= set(words)
