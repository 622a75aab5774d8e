"""Search QA: multi-hop questions over an encyclopedia behind BM25."""

from cotjax.envs.search_qa.world import LARGE, REAL, SMALL, WORLD

__all__ = ["LARGE", "REAL", "SMALL", "WORLD"]
