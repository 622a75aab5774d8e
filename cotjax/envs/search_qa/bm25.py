"""BM25 retrieval over a small corpus, with a defined order of ties."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

K1, B = 1.5, 0.75
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return _WORD.findall(text.lower())


class BM25:
    """An inverted index whose postings hold the score that a word gives to a passage.

    The scores are Lucene's, without its constant factor k1 + 1, as in bm25s (`method="lucene"`,
    arXiv 2407.03618): idf(w) · tf / (tf + k1 (1 - b + b length / mean length)) with
    idf(w) = ln(1 + (N - df + ½) / (df + ½)), summed over the words of the query.

    Args:
      texts: the passages; an id is a position in this list.
    """

    def __init__(self, texts: Sequence[str], k1: float = K1, b: float = B):
        counts = [Counter(words_of(text)) for text in texts]
        lengths = np.array([count.total() for count in counts], np.float64)
        norms = k1 * (1 - b + b * lengths / max(lengths.mean(), 1.0)) if texts else lengths
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for passage, count in enumerate(counts):
            for word, times in count.items():
                passages, frequencies = postings.setdefault(word, ([], []))
                passages.append(passage)
                frequencies.append(times)
        self._number = len(texts)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, (passages, frequencies) in postings.items():
            at, tf = np.array(passages, np.int32), np.array(frequencies, np.float64)
            idf = np.log1p((len(texts) - len(at) + 0.5) / (len(at) + 0.5))
            self._postings[word] = at, idf * tf / (tf + norms[at])

    def scores(self, query: str) -> np.ndarray:
        """Return the score of each passage, float64 of shape [passages]."""
        scores = np.zeros(self._number)
        for word in words_of(query):
            if word in self._postings:
                passages, values = self._postings[word]
                scores[passages] += values  # a passage occurs once in the postings of a word
        return scores

    def top(self, query: str, k: int, hidden: np.ndarray | None = None) -> list[int]:
        """Return the ids of the at most `k` best passages, best first; ties in the order of ids.

        Passages without a word of the query are never returned.

        Args:
          hidden: ids of passages that are left out.
        """
        scores = self.scores(query)
        if hidden is not None:
            scores[hidden] = 0.0
        # The k-th best score, then all that reach it: a partition alone breaks ties arbitrarily.
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
        found = np.flatnonzero(scores >= least) if least > 0 else np.flatnonzero(scores)
        best = found[np.argsort(-scores[found], kind="stable")]
        return [int(passage) for passage in best[:k]]
