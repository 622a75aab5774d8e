"""The phrases of the scripted thoughts, in several wordings each, and their vocabulary.

A model is trained on these texts: changing one changes the training data.
"""

from __future__ import annotations

import re

from cotjax.envs.alfworld.scripted.memory import TREATMENTS

GOALS = {
    "place": (
        "i need {a} in the {to}",
        "i must put {a} in the {to}",
        "the goal is {a} in the {to}",
        "i want {a} in the {to}",
    ),
    "two": (
        "i need two {target} in the {to}",
        "i must put two {target} in the {to}",
        "the goal is two {target} in the {to}",
    ),
    "lamp": (
        "i need {a} under the {to}",
        "i must hold {a} by the {to}",
        "the goal is {a} under the {to}",
    ),
}
HANDS = {
    "empty": ("i hold nothing", "my hand is empty", "i have nothing"),
    "full": ("i hold {held}", "{held} is in my hand", "i have {held} in my hand"),
    "treated": (
        "i hold {held}, it is {state}",
        "i hold {held} and it is {state}",
        "{held} is in my hand, {state} now",
    ),
    "untreated": (
        "i hold {held}, it is not {state}",
        "i hold {held}, not {state} yet",
        "{held} is in my hand, not {state} yet",
    ),
}
ONE_DONE = ("one {target} is there now", "the first {target} is there", "i need one more {target}")
EVERY = ("that was the last {kind}", "every {kind} is done", "i have seen every {kind}")

# What the last observation showed of the wanted class. The class comes first and the verdict right
# after it, so that a small model that looks up what followed the name in the list ("mug 3") finds
# its answer there.
NEWS = {
    "start": ("i have checked nothing yet", "i start here", "i know nothing yet"),
    "absent": ("{wanted} is not at {at}", "{wanted} not seen at {at}", "{wanted} none at {at}"),
    "absent twice": (
        "{wanted} is not at {at}, not at {before}",
        "{wanted} none at {at} and {before}",
    ),
    "empty": ("{at} is empty", "there is nothing at {at}", "i see nothing at {at}"),
    "present": ("{found} is at {at}", "{found} seen at {at}", "{found} here at {at}"),
    "closed": ("{at} is closed", "i see that {at} is closed"),
    "shut": ("i closed {at}",),
    "move": ("i have put {moved} at {at}", "{moved} is at {at} now"),
    "use": ("i used {moved}",),
    "examine": ("i looked at {moved}",),
    "nothing": ("that did nothing", "nothing came of that"),
}
HERE = ("i am at {at}", "i stand at {at}")
# The next place of the class that is searched, and the first of a new class. The former has words
# of its own: a small model that copies the place it has just named ("mug 3 is at shelf 2, so next i
# go to shelf 2") must not do so here.
AFTER = ("then comes {place}", "after that comes {place}")
MAY_BE = ("{a_wanted} may be at {place}", "{place} may have {a_wanted}")
REASONS = {
    "fetch": ("i saw {thing} at {place}", "{thing} is at {place}", "i know {thing} is at {place}"),
    "treat": ("it must be {state} first", "{place} can make it {state}", "i need it {state} first"),
    "lamp": ("i saw {thing} at {place}", "{thing} is at {place}", "i know {thing} is at {place}"),
    "lamp here": ("{thing} is here", "here is {thing}"),
    "deliver": ("it must be in {place}", "it belongs in {place}", "i want it in {place}"),
    "free hand": ("i do not need {thing}", "{thing} is not what i need", "i want an empty hand"),
    "lost": ("i do not know what to do",),
    "wonder": (
        "i am not sure what helps",
        "i just try something",
        "i have no good plan",
        "i want to see what happens",
    ),
    "wonder go": ("i wonder what is at {place}", "i want to see {place}"),
    "wonder open": ("i wonder what is in {place}", "i want to see what is in {place}"),
    "wonder examine": ("i wonder about {thing}", "i want to see {thing}"),
}
NEXT = {
    "go": (
        "next i go to {place}",
        "i go to {place}",
        "now i go to {place}",
        "next i walk to {place}",
    ),
    "open": (
        "next i open {place}",
        "i open {place}",
        "now i open {place}",
        "i open {place} and look",
    ),
    "close": ("next i close {place}", "i close {place}", "now i close {place}"),
    "take": (
        "next i take {thing} from {place}",
        "i take {thing} from {place}",
        "now i pick up {thing} from {place}",
    ),
    "move": (
        "next i move {thing} to {place}",
        "i move {thing} to {place}",
        "now i put {thing} in {place}",
    ),
    "heat": (
        "next i heat {thing} with {place}",
        "i heat {thing} with {place}",
        "now i warm {thing} with {place}",
    ),
    "cool": (
        "next i cool {thing} with {place}",
        "i cool {thing} with {place}",
        "now i chill {thing} with {place}",
    ),
    "clean": (
        "next i clean {thing} with {place}",
        "i clean {thing} with {place}",
        "now i wash {thing} with {place}",
    ),
    "use": ("next i use {thing}", "i use {thing}", "now i turn on {thing}"),
    "examine": ("next i examine {thing}", "i examine {thing}", "now i look closely at {thing}"),
    "look": ("next i look around", "i look around", "now i look around"),
    "inventory": ("next i check what i hold", "i check what i hold", "now i look at my hand"),
}
LINKS = (", so ", ", so ", ". ")

# Thoughts that do not name the action: what was seen, with the place only where the action is
# elsewhere, and the reason by intent, or by intent and verb. They have no words of their own, so
# that the shipped base's tokenizer has them all.
UNNAMED_NEWS = {
    "start": NEWS["start"],
    "absent": ("{wanted} is not here", "{wanted} not seen here", "{wanted} none here"),
    "absent elsewhere": NEWS["absent"],
    "empty": ("there is nothing here", "i see nothing here"),
    "empty elsewhere": NEWS["empty"],
    "present": ("i see {a_wanted}", "{a_wanted} is here", "here is {a_wanted}"),
    "closed": ("it is closed", "i see that it is closed"),
    "shut": ("i closed it",),
    "move": ("i have put one {moved} there", "one {moved} is there now"),
    "use": ("i used the {moved}",),
    "examine": ("i looked at it",),
    "nothing": NEWS["nothing"],
}
UNNAMED_REASONS = {
    "search": ("i must find {a_wanted}", "i want to find {a_wanted}", "i have no {wanted} yet"),
    "search open": ("i want to see what is in it", "i need to see what is in it"),
    "search examine": ("i have not checked what is here", "i want to see what is here"),
    "fetch": ("i know {a_wanted} now", "i have seen {a_wanted}", "i saw {a_wanted}"),
    "fetch take": ("i need it in my hand", "i want it in my hand", "it is what i need"),
    "fetch open": ("i need what is in it", "i want what is in it"),
    "treat": ("it must be {state} first", "i need it {state} first"),
    "lamp": ("i know {a_wanted} now", "i have seen {a_wanted}", "i saw {a_wanted}"),
    "lamp use": ("i need it on", "it must be on"),
    "lamp search": ("i must find {a_wanted}", "i want to find {a_wanted}"),
    "lamp search open": ("i want to see what is in it", "i need to see what is in it"),
    "lamp search examine": ("i have not checked what is here", "i want to see what is here"),
    "deliver": ("it must be in the {to}", "it belongs in the {to}", "i want it in the {to}"),
    "deliver move": ("it belongs here", "i want it here", "it must be here"),
    "free hand": ("i do not need it", "it is not what i need", "i want an empty hand"),
    "lost": REASONS["lost"],
    "wonder": REASONS["wonder"],
}

_TABLES = (
    *(GOALS, HANDS, NEWS, REASONS, NEXT, {"": ONE_DONE + EVERY + HERE + AFTER + MAY_BE}),
    *(UNNAMED_NEWS, UNNAMED_REASONS),
)
VOCABULARY = frozenset(
    word
    for table in _TABLES
    for options in table.values()
    for option in options
    for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", option))
) | {"a", "an", "so", *(state for state, _ in TREATMENTS.values())}
"""Every word of the thoughts, apart from the game's own names."""
