"""ScienceWorld, tasks of elementary science."""

from cotjax.envs.scienceworld.env import ScienceWorldEnv
from cotjax.envs.scienceworld.world import PLAIN, WORLD

__all__ = ["PLAIN", "WORLD", "ScienceWorldEnv"]
