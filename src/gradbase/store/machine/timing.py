"""A machine's own time: the sum of what passed between ticks, with jumps of the clock cut off."""

from __future__ import annotations

from typing import Final

_NEVER_US: Final = 1 << 62  # later than any clock says, so that the first tick finds that nothing passed


class Stopwatch:
    """A clock that goes back counts for nothing, one that jumps ahead for at most `most_us` a tick."""

    __slots__ = ("_last_us", "_most_us")

    def __init__(self, most_us: int) -> None:
        self._most_us = most_us
        self._last_us = _NEVER_US

    def passed_us(self, now_us: int) -> int:
        passed = now_us - self._last_us
        self._last_us = now_us
        if passed < 0:
            return 0
        return passed if passed < self._most_us else self._most_us
