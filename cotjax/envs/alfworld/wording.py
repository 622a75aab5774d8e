"""What ALFWorld's prompts say beside the episode (`cotjax.formats.prompts`)."""

from __future__ import annotations

# The commands are those of ALFWorld's grammar; see `cotjax.envs.alfworld.grammar`.
INSTRUCTION = """\
You are in a house that is described in text, and have a task to do there. Objects have a name and \
a number, such as fridge 1. Your actions are:
go to (receptacle)
open (receptacle)
close (receptacle)
take (object) from (receptacle)
move (object) to (receptacle)
heat (object) with (receptacle)
cool (object) with (receptacle)
clean (object) with (receptacle)
slice (object) with (object)
use (object)
examine (object)
look
inventory
You can hold one object. The answer to an action that does nothing is "Nothing happens."
In each turn, reason about what to do next between <think> and </think>, then give exactly one \
action between <action> and </action>, and write nothing else, as here:
<think>A mug may be in a cabinet, so I go to cabinet 1.</think><action>go to cabinet 1</action>"""
