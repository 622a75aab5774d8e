"""The OOD matrix: two arms with different task types, by what they are played on, 60 games a cell.

One arm is trained on picking and on examining in light, one on cleaning and on heating; both are
played on the task types of both, and on the first arm's in three shifts: goals with held-out
objects and held-out pairs of object and receptacle, longer rooms, and the older text grammar. The
rooms of all played games are made anew, so no floor plan was seen in training. The base is the
pilot of every cell.

Thoughts name the action and 30 % of the trajectories have none, as in "named_mixed" of
configs/demo.py, so both kinds of action are trained.

Command   cotjax study --config configs/matrix.py
Hardware  one of 2 CPU cores that other processes shared: 23 minutes, of which 2 make the games
Result    on the task types of their training the two arms win 0.63 [0.50, 0.74] and 0.63 [0.51,
          0.74] of the games by CoT actions, from 0.11 and 0.25 at the base; on each other's 0.16
          [0.09, 0.27] and 0.00 [0.00, 0.06]. The first one wins 0.52 [0.39, 0.64] with held-out
          objects. In longer rooms and in the older grammar the base wins 0.03 and 0.08, so these
          cells are marked. docs/results.md has the matrix.
"""

import demo

from cotjax.config import default_config

PICK, LIGHT = "pick_and_place_simple", "look_at_obj_in_light"
CLEAN, HEAT = "pick_clean_then_place_in_recep", "pick_heat_then_place_in_recep"


def get_config():
    config = default_config()
    config.title = "Trained on, by played on: task types, objects, rooms and grammar"
    config.out = "runs/matrix"
    config.cpu_devices = 2
    # The shipped base's, but that it writes "in/on" in one piece, as the older grammar does.
    config.model.tokenizer = "configs/matrix_tokenizer"
    config.task_types.in_domain, config.task_types.ood = (PICK, LIGHT), (CLEAN, HEAT)
    config.task_types.collect = (PICK, LIGHT, CLEAN, HEAT)
    config.games.train = 150  # of each collected task type
    config.games.in_domain, config.games.ood = 62, 60  # the expert may lose one or two
    config.games.ood_domains = ("ood", "ood_objects", "ood_rooms", "ood_grammar")
    config.collect.slips = 0.3
    config.train.steps = config.train.save_every = 60
    config.train.warmup = 10
    config.train.learning_rate = 2e-3
    config.train.information_examples = 0
    config.train.vector_rate = 10.0
    config.evaluate.max_steps = 20  # the scripted expert wins in 8 on average
    config.evaluate.max_new_tokens = 64  # the longest scripted response has some 50
    config.evaluate.slots = 60
    # Driven by prompt actions, the base wins none of the demo's 64 games, so those cells would be
    # marked: prompt actions are measured on expert states alone.
    config.evaluate.elicitations, config.evaluate.offline = ("cot",), ("prompt",)
    config.primary.measure = "d1"
    config.primary.domains = ("in_domain",)
    mixed = {**demo.CELLS["named_mixed"]}
    config.arms = {
        "pick_light": {**mixed, "label": "pick, examine in light"},
        "wash_heat": {**mixed, "label": "clean, heat", "task_types": (CLEAN, HEAT)},
    }
    return config
