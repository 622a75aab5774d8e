"""Search QA: multi-hop questions over a generated encyclopedia behind BM25."""

from cotjax.envs.search_qa.world import LARGE, WORLD

__all__ = ["LARGE", "WORLD"]
