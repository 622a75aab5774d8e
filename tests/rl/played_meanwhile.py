"""Run by test_steps_ahead.py in a process with two CPU devices: `played_meanwhile.py FOLDER`.

One device trains while the other plays. Prints, as JSON, which steps the main thread played.
"""

import json
import sys
import threading
from pathlib import Path

import jax
from helpers.doors import acting, run, stale_run

from cotjax.model.sharding import make_mesh
from cotjax.rl import play

play_step, played = play.play_step, {}


def playing(*rest, **named):
    played[named["step"]] = threading.current_thread() is threading.main_thread()
    return play_step(*rest, **named)


play.play_step = playing
with acting(mesh=make_mesh(devices=jax.devices()[-1:])) as actors:
    run(Path(sys.argv[1]), stale_run(play_devices=1), actors)
print(json.dumps(played))
