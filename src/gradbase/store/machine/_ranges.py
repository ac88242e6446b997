"""Sets of batch numbers. Numbers are used nearly in order, so a set is a few half-open ranges, ascending and apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradbase.store.machine.messages import Ranges


class NumberSet:
    """Grows one number at a time: everything below a floor, and some above it."""

    __slots__ = ("_above", "_floor")

    def __init__(self, ranges: Ranges = ()) -> None:
        self._floor = 0
        self._above: set[int] = set()
        for low, high in ranges:
            if low <= self._floor:
                self._floor = max(self._floor, high)
            else:
                self._above.update(range(low, high))

    def __contains__(self, number: int) -> bool:
        return number < self._floor or number in self._above

    def add(self, number: int) -> None:
        if number != self._floor:
            if number > self._floor:
                self._above.add(number)
            return
        number += 1
        above = self._above
        while number in above:
            above.remove(number)
            number += 1
        self._floor = number

    def ranges(self) -> Ranges:
        below: Ranges = ((0, self._floor),) if self._floor else ()
        return below + as_ranges(self._above)


def as_ranges(numbers: Iterable[int]) -> Ranges:
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return tuple(ranges)


def subtract(whole: Ranges, holes: Ranges) -> Ranges:
    """Numbers of `whole` that are not in `holes`."""
    left: list[tuple[int, int]] = []
    for low, high in whole:
        for hole_low, hole_high in holes:
            if hole_high <= low or hole_low >= high:
                continue
            if hole_low > low:
                left.append((low, hole_low))
            low = min(hole_high, high)
        if low < high:
            left.append((low, high))
    return tuple(left)


def union(*sets: Ranges) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(part for ranges in sets for part in ranges if part[0] < part[1]):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def numbers_in(ranges: Ranges) -> Iterator[int]:
    for low, high in ranges:
        yield from range(low, high)


def holds(ranges: Ranges, number: int) -> bool:
    return any(low <= number < high for low, high in ranges)
