"""ALFWorld, the text household."""

from cotjax.envs.alfworld.env import AlfworldEnv, find_games
from cotjax.envs.alfworld.world import WORLD

__all__ = ["WORLD", "AlfworldEnv", "find_games"]
