"""Trees of the texts that are scored together: what they begin with in common is read once.

The program that scores a tree is `cotjax.model.cache.score_tree`; its docstring draws one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

Ids = tuple[int, ...]


@dataclass
class Tree:
    """One slot's texts for one pass, in depth-first order. Prefix tokens come first.

    Attributes:
      ids, depths, ends: of each token that is read. The last token of a text is read only where a
        longer text goes on from it.
      parents, targets: of each id that is scored: the token before it (-1: the end of the cached
        prompt), and the id.
      scored: text -> for each of its ids which of the targets it is.
    """

    prefix: Ids = ()
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    scored: dict[Ids, list[int]] = field(default_factory=dict)
    # The text added last: its tokens, and its targets.
    _tokens: list[int] = field(default_factory=list)
    _last: Ids = ()

    def __post_init__(self) -> None:
        for depth, id in enumerate(self.prefix):
            self._read(id, depth)

    def growth(self, text: Ids) -> tuple[int, int]:
        """Return how many tokens, and how many targets, `text` would add."""
        common = _common(self._last, text)
        return max(0, len(text) - 1 - min(common, len(self._tokens))), len(text) - common

    def add(self, text: Ids) -> None:
        """Add a text, which must not come before an added one in the order of their ids."""
        common = _common(self._last, text)
        targets = self.scored.get(self._last, [])[:common]
        del self._tokens[common:]
        for at in range(min(common, len(self._tokens)), len(text)):
            # The token before this id, the last one of a shorter text perhaps, is read first.
            if at > len(self._tokens):
                self._tokens.append(len(self.ids))
                self._read(text[at - 1], len(self.prefix) + at - 1)
            if at >= common:
                targets.append(len(self.targets))
                self.parents.append(self._tokens[at - 1] if at else len(self.prefix) - 1)
                self.targets.append(text[at])
        for token in (*range(len(self.prefix)), *self._tokens):
            self.ends[token] = len(self.ids) - 1
        self.scored[text], self._last = targets, text

    def fits(self, most: int, tokens: int = 0, targets: int = 0) -> bool:
        """Whether it has, with so many more, at most `most` tokens and 2 `most` targets."""
        return len(self.ids) + tokens <= most and len(self.targets) + targets <= 2 * most

    def _read(self, id: int, depth: int) -> None:
        self.ids.append(id)
        self.depths.append(depth)
        self.ends.append(len(self.ids) - 1)


def plan(texts: Collection[Ids], most: int, prefix: Ids = ()) -> list[Tree]:
    """Return trees that hold each distinct text, of at most `most` tokens and 2 `most` targets.

    Every tree begins with the prefix. A text that alone needs more has a tree of its own.
    """
    trees: list[Tree] = []
    for text in sorted({*texts}):
        if not trees or not trees[-1].fits(most, *trees[-1].growth(text)):
            trees.append(Tree(prefix))
        trees[-1].add(text)
    return trees


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two texts begin with in common."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))
