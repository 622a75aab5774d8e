"""What ScienceWorld's prompts say beside the episode (`cotjax.formats.prompts`)."""

from __future__ import annotations

# The commands are those that the simulator lists itself, in answer to "help".
INSTRUCTION = """\
You are in a house with a workshop, a greenhouse and other places, described in text, and have a \
task of elementary science to do there. Your actions are (connect and disconnect in tasks about \
circuits only):
look around
look at (thing)
look in (container)
inventory
go to (place)
{teleport}open (door or container)
close (door or container)
pick up (thing)
put down (thing)
move (thing) to (container or place)
pour (liquid) into (container)
dunk (container) into (liquid)
mix (container)
activate (device)
deactivate (device)
use (tool) on (thing)
connect (part) to (part)
disconnect (thing)
read (thing)
eat (thing)
flush (thing)
focus on (thing)
wait
wait1
task
To focus on a thing is to answer with it, and a wrong one ends the task: do so when the task says. \
wait takes ten units of time, wait1 one. When an answer lists numbered choices, give a number.
In each turn, reason about what to do next between <think> and </think>, then give exactly one \
action between <action> and </action>, and write nothing else, as here:
<think>The thermometer is in the kitchen, so I go there.</think><action>go to kitchen</action>"""


def instruction(teleports: bool) -> str:
    """Return the instruction, with the action that the simplification "easy" adds."""
    return INSTRUCTION.replace("{teleport}", "teleport to (place)\n" if teleports else "")
