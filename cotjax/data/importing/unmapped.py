"""The reason why a row cannot be mapped to a trajectory."""

from __future__ import annotations


class Unmapped(Exception):
    """A row that is not a trajectory.

    Args:
      kind: the reason; the same for all rows rejected for it, which are counted together.
      where: the place inside the row, such as a message.
    """

    def __init__(self, kind: str, where: str = ""):
        super().__init__(f"{where}: {kind}" if where else kind)
        self.kind = kind
