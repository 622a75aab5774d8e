"""`cotjax bench env`: the cached engine is far faster than the stock one, and answers the same.

`COTJAX_REAL_ALFWORLD=<folder holding json_2.1.1/>` adds one of ALFWorld's own games.
"""

import os

import pytest

from cotjax.bench.engine import benchmark
from cotjax.envs.alfworld.maker.make import make_games

LEAST = 25  # times the stock engine's steps a second, loading and reset included


# The stock engine leaves files open.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
@pytest.mark.parametrize("games", ["made", "real"])
def test_the_cached_engine_is_25_times_as_fast_and_answers_the_same(games, tmp_path):
    if games == "made":
        make_games(
            tmp_path, {"valid_seen": {"pick_heat_then_place_in_recep": 1}}, seed=0, workers=1
        )
        root = str(tmp_path)
    else:
        root = os.environ.get("COTJAX_REAL_ALFWORLD", "")
        if not root:
            pytest.skip("COTJAX_REAL_ALFWORLD names no folder of ALFWorld's games")
    # Whatever else the machine does while one of the engines has its turn: three tries at most.
    for _ in range(3):
        figures = benchmark(root, "valid_seen", games=1, steps=10)  # raises where they differ
        ratio = figures["cached, known game"]["steps/s"] / figures["stock"]["steps/s"]
        if ratio >= LEAST:
            return
    pytest.fail(f"{ratio:.1f} times the stock engine's speed")
