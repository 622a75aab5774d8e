"""Text from environments and models, made safe to print on a terminal."""

from __future__ import annotations

import unicodedata

# Controls (C0, C1, DEL), formats (bidirectional overrides, zero widths, tags), lone surrogates, and
# separators that break lines.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # without them emoji and several scripts are misspelled


def visible(text: str, kept: str = "\n\t") -> str:
    r"""Return `text` with each character that a terminal would act on, or hide, as its escape.

    The escape character becomes "\x1b". Unescaped, such text could set a terminal's title, clear
    the screen, fill the clipboard, or look different from what is stored. Characters in `kept` and
    the joiners stay.
    """
    if text.isprintable():
        return text
    harmless = kept + _JOINERS
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _ACTING and char not in harmless
        else char
        for char in text
    )
