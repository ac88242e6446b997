"""Static addresses: blocks that overlap in time must not overlap in the arena, and the arena should be small.

Offsets are found by placing blocks one after the other into the best hole among those alive at the same time (the
offline dynamic storage allocation problem). Several orders are tried; then the order is repaired: blocks that stick
out at the top are placed earlier next time (squeaky wheel).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def pack(
    born: Sequence[int], dies: Sequence[int], nbytes: Sequence[int], alignment: Sequence[int], enough: int, tries: int
) -> tuple[list[int], int]:
    """Offsets of blocks alive from `born` to `dies` (inclusive), and the arena's size.

    Stops at the first packing not above `enough` bytes, or after `tries` more than the four first orders.
    """
    if not nbytes:
        return [], 0
    blocks = _Blocks(*(np.array(x, dtype=np.int64) for x in (born, dies, nbytes, alignment)))
    enough = max(enough, blocks.most_alive())
    best: tuple[int, Ints, list[int]] | None = None
    for order in blocks.orders():
        best = _better(best, blocks.place(order), order)
        if best[0] <= enough:
            break
    assert best is not None
    best = _squeak(blocks, best, enough, tries)
    return [int(x) for x in best[1]], best[0]


def _better(best: tuple[int, Ints, list[int]] | None, placed: tuple[int, Ints], order: list[int]
            ) -> tuple[int, Ints, list[int]]:
    if best is None or placed[0] < best[0]:
        return placed[0], placed[1], order
    return best


def _squeak(
    blocks: _Blocks, best: tuple[int, Ints, list[int]], enough: int, tries: int
) -> tuple[int, Ints, list[int]]:
    random = np.random.default_rng(0)
    height, offsets, order = best
    for _ in range(tries):
        if best[0] <= enough:
            break
        order = _promote(blocks, offsets, order, height, random)
        height, offsets = blocks.place(order)
        best = _better(best, (height, offsets), order)
        if height > best[0] * 1.1:
            height, offsets, order = best[0], best[1], best[2]
    return best


def _promote(blocks: _Blocks, offsets: Ints, order: list[int], height: int, random: np.random.Generator) -> list[int]:
    """Move the blocks at the very top some way towards the front."""
    top = set(np.nonzero(offsets + blocks.nbytes == height)[0].tolist())
    order = list(order)
    for block in sorted(top):
        at = order.index(block)
        order.insert(int(random.integers(0, at + 1)), order.pop(at))
    return order


class _Blocks:
    def __init__(self, born: Ints, dies: Ints, nbytes: Ints, alignment: Ints) -> None:
        self.born, self.dies, self.nbytes, self.alignment = born, dies, nbytes, alignment

    def alive(self) -> Ints:
        change = np.zeros(int(self.dies.max()) + 2, dtype=np.int64)
        np.add.at(change, self.born, self.nbytes)
        np.subtract.at(change, self.dies + 1, self.nbytes)
        return np.cumsum(change)

    def most_alive(self) -> int:
        return int(self.alive().max())

    def orders(self) -> list[list[int]]:
        born, size, length = self.born, self.nbytes, self.dies - self.born
        peak = int(self.alive().argmax())
        at_peak = (born <= peak) & (self.dies >= peak)
        return [
            np.lexsort((born, -length, -size)).tolist(),
            np.lexsort((born, -size * (length + 1))).tolist(),
            np.lexsort((born, -size, ~at_peak)).tolist(),
            np.lexsort((born, -size, -length)).tolist(),
            np.lexsort((-size, born)).tolist(),
        ]

    def place(self, order: list[int]) -> tuple[int, Ints]:
        """Best-fit placement in a given order: the arena's size and the offsets."""
        count = len(order)
        low, high = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        born, dies = self.born[order], self.dies[order]
        sizes, steps = self.nbytes[order].tolist(), self.alignment[order].tolist()
        for index in range(count):
            clash = (born[:index] <= dies[index]) & (dies[:index] >= born[index])
            low[index] = _hole(low[:index][clash], high[:index][clash], sizes[index], steps[index])
            high[index] = low[index] + sizes[index]
        offsets = np.empty(count, dtype=np.int64)
        offsets[order] = low
        return int(high.max()), offsets


def _hole(low: Ints, high: Ints, nbytes: int, step: int) -> int:
    """The start of the smallest hole of at least `nbytes` between occupied spans, else the end of all of them."""
    if not len(low):
        return 0
    by_low = np.argsort(low, kind="stable")
    low = low[by_low]
    floor = np.empty(len(low) + 1, dtype=np.int64)
    floor[0] = 0
    np.maximum.accumulate(high[by_low], out=floor[1:])
    start = -(-floor // step) * step
    space = low - start[:-1]
    fits = np.nonzero(space >= nbytes)[0]
    if not len(fits):
        return int(start[-1])
    return int(start[fits[np.argmin(space[fits])]])
