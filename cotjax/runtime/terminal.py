"""Text of others on a terminal: what would act on it, or hide in it, is written out."""

from __future__ import annotations

import unicodedata

# Controls (C0, C1, DEL), formats (bidirectional overrides, zero widths, tags), half surrogates, and separators that break lines.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # without them emoji and several scripts are misspelled


def visible(text: str, kept: str = "\n\t") -> str:
    r"""Return `text` with every character that a terminal would obey as its escape: the escape character becomes "\x1b".

    What an environment says or a model writes can set a terminal's title, clear it, fill the clipboard, or read otherwise than it is
    stored. Print it through this, and nothing of it but `kept` is more than text.
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
