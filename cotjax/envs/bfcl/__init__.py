"""BFCL v3 multi-turn: a user's requests, fulfilled by function calls."""

from cotjax.envs.bfcl.world import WORLD

__all__ = ["WORLD"]
