"""BM25: its scores are those of bm25s, its order is defined, and it is fast."""

import random
import time

import numpy as np
import pytest

from cotjax.envs.search_qa.bm25 import BM25, words_of
from cotjax.envs.search_qa.invented import invent
from cotjax.envs.search_qa.pages import write_pages

DOCUMENTS = [
    "Bel Tor was born in Mi Na.",
    "Mi Na is a town in the land Ka Lo. Mi Na is 312 years old.",
    "The mayor of Mi Na is Bel Ro.",
    "Ka Lo covers 99 square miles.",
    "Bel Ro Bel Ro Bel Ro wrote the book Tor Na.",
]
# Of bm25s 0.3.16, method="lucene", on DOCUMENTS. A word that a query repeats counts twice.
SCORES = {
    "Bel Ro mayor": [0.245522, 0.0, 1.211139, 0.0, 0.909807],
    "town of Mi Na": [0.376565, 0.815577, 0.956961, 0.0, 0.107986],
    "Bel Bel the land": [0.491043, 0.592397, 0.699239, 0.0, 0.895704],
    "nothing here": [0.0] * 5,
}


def passages(seed: int, scale: int = 1) -> list[str]:
    return [f"{each.title} {each.text}" for each in write_pages(invent(seed, scale), seed)]


@pytest.mark.parametrize("query", SCORES)
def test_scores_are_those_of_bm25s(query):
    np.testing.assert_allclose(BM25(DOCUMENTS).scores(query), SCORES[query], atol=1e-6)


def test_500_queries_score_as_in_the_installed_bm25s():
    bm25s = pytest.importorskip("bm25s", reason="bm25s is not installed (pip install bm25s)")
    texts = passages(0)
    index, peer = BM25(texts), bm25s.BM25(method="lucene")
    peer.index([words_of(text) for text in texts], show_progress=False)
    rng = random.Random(0)
    for _ in range(500):
        query = " ".join(rng.sample(words_of(rng.choice(texts)), 5))
        scores = peer.get_scores(words_of(query))
        np.testing.assert_allclose(index.scores(query), scores, atol=1e-5)
        # The same three passages, up to ties.
        top = index.top(query, 3)
        np.testing.assert_allclose(np.sort(scores)[::-1][:3], scores[top], atol=1e-5)


def test_ties_are_broken_by_the_passages_id():
    texts = ["other words", *["the same words"] * 40, "the best of the same words best"]
    index = BM25(texts)
    assert index.top("same", 3) == [1, 2, 3]
    assert index.top("best same", 3) == [41, 1, 2]
    assert BM25(texts[::-1]).top("same", 2) == [1, 2]


def test_passages_without_a_word_of_the_query_and_hidden_ones_are_left_out():
    index = BM25(DOCUMENTS)
    assert index.top("miles", 3) == [3]
    assert index.top("unheard", 3) == []
    assert index.top("Bel", 3) == [4, 0, 2]
    assert index.top("Bel", 3, hidden=np.array([4, 2])) == [0]
    assert BM25([]).top("Bel", 3) == []


def test_ten_thousand_passages_take_2000_searches_a_second():
    texts = passages(1, scale=10)
    assert len(texts) > 10_000
    index, rng = BM25(texts), random.Random(0)
    queries = [" ".join(rng.sample(words_of(rng.choice(texts)), 6)) for _ in range(400)]
    start = time.process_time()  # of this process alone, whatever else the machine does
    for query in queries:
        assert index.top(query, 3)
    assert len(queries) / (time.process_time() - start) > 2000
