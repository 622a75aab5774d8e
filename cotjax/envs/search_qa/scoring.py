"""Scores of answers: normalised exact match and F1 over words, as in SQuAD (arXiv 1606.05250)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ENOUGH = 0.7  # share of a right answer's words
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def normalize(text: str) -> str:
    """Return the text in lower case, without punctuation, articles and further spaces."""
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split())


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Return whether an answer equals one of the right ones after normalisation."""
    return normalize(answer) in {normalize(gold) for gold in golds}


def f1(answer: str, golds: Sequence[str]) -> float:
    """Return the best F1 of the answer's words with those of a right answer, 0 to 1."""
    return max(_f1(normalize(answer).split(), normalize(gold).split()) for gold in golds)


def published_reward(answer: str, golds: Sequence[str]) -> float:
    """Return AutoCoA's reward of an answer (arXiv 2503.06580): 1 or 0.

    1 where it equals a right answer; 0 where one of the two contains the other; else 1 where at
    least 70 % of the right answer's words are in it, in any order and among any others. So to "New
    York" the answer "York New Paris London" is right, and "New York City" is wrong.
    """
    return max(_published_reward(normalize(answer), normalize(gold)) for gold in golds)


def _published_reward(answer: str, gold: str) -> float:
    if answer == gold:
        return 1.0
    if not gold or not answer or gold in answer or answer in gold:
        return 0.0
    words = gold.split()
    return float(sum(word in answer.split() for word in words) >= _ENOUGH * len(words))


def _f1(words: list[str], gold: list[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold))
