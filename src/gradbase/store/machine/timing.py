"""A machine's own time: the sum of what passed between ticks, with jumps of the clock cut off."""

from __future__ import annotations


class Stopwatch:
    """A clock that goes back counts for nothing, one that jumps ahead for at most `most_us` a tick."""

    __slots__ = ("_last_us", "_most_us")

    def __init__(self, most_us: int) -> None:
        self._most_us = most_us
        self._last_us: int | None = None

    def passed_us(self, now_us: int) -> int:
        last, self._last_us = self._last_us, now_us
        if last is None or now_us < last:
            return 0
        return min(now_us - last, self._most_us)
