"""ALFWorld's task types, and the domains that they are split into."""

from __future__ import annotations

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# The out-of-domain split of arXiv 2606.26935: two task types that CoT training never shows.
OOD_TASKS = ("pick_cool_then_place_in_recep", "pick_two_obj_and_place")
