"""The words of household games, for word-level tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cotjax.envs.alfworld.catalog import load_catalog
from cotjax.envs.alfworld.scripted.phrases import VOCABULARY

# Instances of one class in a room; the largest real kitchens have about 40 cabinets and drawers.
HIGHEST_NUMBER = 60


def alfworld_words() -> Iterator[str]:
    """Yield texts with all words of ALFWorld's grammar, its goals and the scripted thoughts.

    Raises EnvError if the alfworld package is not installed.
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
    yield "Nothing happens. go to take from move to open close heat clean cool with"
    yield "use slice examine look inventory help"
    yield "first turn on off the a an some Your task is to:"
    yield from sorted(VOCABULARY)


def _without_slots(text: str) -> str:
    """Return the text without its `{…}`, `[{…}]` and `#…#`."""
    return re.sub(r"\[?\{[^}]*\}\]?|#[^#]*#", " ", text)
