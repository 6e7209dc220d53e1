"""What can't come home."""

from __future__ import annotations

LINE_BUDGET = 40_000  # of the 64 KiB that a line may have


class Refusals:
    """Paths with the reason, as many as fit into the unit's record.

    :ivar more: those that are not named.
    """

    def __init__(self, most: int) -> None:
        self.named: list[tuple[bytes, str]] = []
        self.more = 0
        self._most, self._budget = most, LINE_BUDGET

    def add(self, path: bytes, why: str) -> None:
        """Note one."""
        cost = len(path) * 4 // 3 + len(why) + 40
        if len(self.named) < self._most and cost <= self._budget:
            self._budget -= cost
            self.named.append((path, why))
        else:
            self.more += 1
