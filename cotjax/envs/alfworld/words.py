"""Every word that a household game can say, for word-level tokenizers: names, numbers, feedback, commands and instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cotjax.envs.alfworld.catalog import load_catalog
from cotjax.envs.alfworld.scripted.thoughts import VOCABULARY

HIGHEST_NUMBER = 60  # instances of one class in one room; the largest real kitchens have some 40 cabinets and drawers


def alfworld_words() -> Iterator[str]:
    """Texts that together hold the vocabulary of ALFWorld's grammar, its goals, and the scripted thoughts.

    Raises EnvError when the alfworld package is not installed.
    """
    catalog = load_catalog()
    yield from sorted(
        kind.lower() for kind in catalog.kinds | catalog.fits.keys() | catalog.portable
    )
    yield " ".join(str(number) for number in range(HIGHEST_NUMBER + 1))
    for feedback in re.findall(r'"rhs": "([^"]*)"', catalog.grammar):
        yield _without_slots(feedback.replace("\\n", " "))
    for command in re.findall(r"template\s*::\s*\"([^\"]*)\"", catalog.grammar):
        yield _without_slots(command)
    for _, templates in catalog.goals.values():
        yield from (_without_slots(template) for template in templates)
    yield "Nothing happens. go to take from move to open close heat clean cool with use slice examine look inventory help"
    yield "first turn on off the a an some Your task is to:"
    yield from sorted(VOCABULARY)


def _without_slots(text: str) -> str:
    """The fixed words around `{…}` and `#…#`; `[{…}]` lists become nothing."""
    return re.sub(r"\[?\{[^}]*\}\]?|#[^#]*#", " ", text)
