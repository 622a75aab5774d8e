"""The simulator's words, for word-level tokenizers: those of the text constants of its classes."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator

from cotjax.envs.scienceworld.engine import installed_jar

HIGHEST_NUMBER = 100  # of ticks, percent and degrees; temperatures may be higher

# Java class files (the Java Virtual Machine Specification, 4.4): bytes of an entry of the constant
# pool after its tag. An entry of text has a length of its own.
_TEXT, _STRING, _LONG, _DOUBLE = 1, 8, 5, 6
_BYTES = {3: 4, 4: 4, _LONG: 8, _DOUBLE: 8, 7: 2, _STRING: 2, 9: 4, 10: 4, 11: 4, 12: 4}
_BYTES |= {15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}


def scienceworld_words() -> Iterator[str]:
    """Yield texts with all words of tasks, answers and things.

    Things of one kind of game occur in no other, so the words of training episodes are not enough
    for other ones. Raises UsageError where the package is missing.
    """
    with zipfile.ZipFile(installed_jar()) as jar:
        for name in sorted(jar.namelist()):
            if "scienceworld/" in name and name.endswith(".class"):
                yield from _constants(jar.read(name))
    yield " ".join(map(str, range(HIGHEST_NUMBER + 1)))


def _constants(content: bytes) -> Iterator[str]:
    """Yield the text constants of a class file."""
    (count,) = struct.unpack_from(">H", content, 8)
    texts, strings, at, number = dict[int, bytes](), list[int](), 10, 1
    while number < count:
        tag = content[at]
        (value,) = struct.unpack_from(">H", content, at + 1)
        if tag == _TEXT:
            texts[number] = content[at + 3 : at + 3 + value]
            at += 3 + value
        else:
            if tag == _STRING:
                strings.append(value)
            at += 1 + _BYTES[tag]
        number += 2 if tag in (_LONG, _DOUBLE) else 1  # these two take two numbers
    yield from (texts[number].decode("utf-8", "replace") for number in strings)
