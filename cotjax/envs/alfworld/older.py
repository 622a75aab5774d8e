"""ALFWorld's older text grammar, with `put X in/on Y` for `move X to Y`.

The grammar is inside each game file. Games of ALFWorld before 0.4 have the older one, and the axis
`tasks.OOD_GRAMMAR` is made of such games.
"""

from __future__ import annotations

import re

from cotjax.errors import EnvError

# Texts of the present grammar (alfworld 0.4) -> those of the older one.
_TEXTS = {
    "move {o} to {r}": "put {o} in/on {r}",
    "You move the {o.name} to the {r.name}.": "You put the {o.name} in/on the {r.name}.",
    "You arrive at {r.name}.": "You arrive at {lend.name}.",
    "move (object) to (receptacle):": "put (object) in/on (receptacle):",
}
# How a game file, which is JSON, begins the command for an object in the hand.
_PUTS = re.compile(rb'action PutObject \{(?:\\[nrt]|\s)*template :: \\"put ')


def older_grammar(grammar: str) -> str:
    """Return the present grammar in its older wording. Raises EnvError for another grammar."""
    for present, older in _TEXTS.items():
        if present not in grammar:
            raise EnvError(
                f"the grammar of the installed alfworld has no {present!r}, so games of the older "
                "grammar cannot be made: install alfworld 0.4.2"
            )
        grammar = grammar.replace(present, older)
    return grammar


def older_command(command: str) -> str:
    """Return a command of the present grammar as the older one has it."""
    return re.sub(r"^move (.+) to (.+)$", r"put \1 in/on \2", command)


def is_older(game_file: bytes) -> bool:
    """Return whether a game file, game.tw-pddl, has an older grammar."""
    return _PUTS.search(game_file) is not None
