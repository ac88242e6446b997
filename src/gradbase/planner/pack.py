"""Static addresses: blocks that overlap in time must not overlap in the arena, and the arena should be small.

Offsets are found by placing blocks one after the other into the best hole among those alive at the same time (the
offline dynamic storage allocation problem). Several orders are tried; then the order is repaired: blocks that stick
out at the top are placed earlier next time (squeaky wheel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


# Blocks placed, over all tries, before the best packing so far is taken.
_PLACEMENTS = 25_000


def pack(
    born: Sequence[int], dies: Sequence[int], nbytes: Sequence[int], alignment: Sequence[int], enough: int
) -> tuple[list[int], int]:
    """Offsets of blocks alive from `born` to `dies` (inclusive), and the arena's size.

    Stops at the first packing not above `enough` bytes, or of no more than are alive at one time.
    """
    if not nbytes:
        return [], 0
    blocks = _Blocks(*(np.array(x, dtype=np.int64) for x in (born, dies, nbytes, alignment)))
    enough = max(enough, blocks.most_alive())
    best = _first_orders(blocks, enough)
    best = _squeak(blocks, best, enough, max(4, _PLACEMENTS // len(nbytes) - 2 * len(blocks.orders())))
    return [int(x) for x in best.offsets], best.height


@dataclass(frozen=True, slots=True)
class _Packing:
    height: int
    offsets: Ints
    order: list[int]
    tight: bool


def _first_orders(blocks: _Blocks, enough: int) -> _Packing:
    best: _Packing | None = None
    for order in blocks.orders():
        for tight in (True, False):
            packing = blocks.place(order, tight)
            if best is None or packing.height < best.height:
                best = packing
            if best.height <= enough:
                return best
    assert best is not None
    return best


def _squeak(blocks: _Blocks, best: _Packing, enough: int, tries: int) -> _Packing:
    random, packing = np.random.default_rng(0), best
    for _ in range(tries):
        if best.height <= enough:
            break
        packing = blocks.place(_promote(blocks, packing, random), packing.tight)
        if packing.height < best.height:
            best = packing
        if packing.height > best.height * 1.1:
            packing = best
    return best


def _promote(blocks: _Blocks, packing: _Packing, random: np.random.Generator) -> list[int]:
    """Move the blocks at the very top some way towards the front."""
    top = np.nonzero(packing.offsets + blocks.nbytes == packing.height)[0].tolist()
    order = list(packing.order)
    for block in top:
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
        """By contention (the most bytes alive during a block's life), size, length of life, and products of them."""
        born, size, length, alive = self.born, self.nbytes, self.dies - self.born + 1, self.alive()
        crowd = np.array([alive[b : d + 1].max() for b, d in zip(born, self.dies, strict=True)])
        keys = [
            (born, -size * length),
            (born, -size, -length),
            (born, -size * length, -crowd),
            (born, -length, -crowd),
            (born, -size, -crowd),
            (born, -size * np.sqrt(length)),
            (born, -length * np.sqrt(size)),
            (born, -length, -size),
            (-size, born),
        ]
        return [np.lexsort(key).tolist() for key in keys]

    def place(self, order: list[int], tight: bool) -> _Packing:
        """Place blocks in an order: each in its tightest hole, or in its lowest."""
        count = len(order)
        low, high = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        born, dies = self.born[order], self.dies[order]
        sizes, steps = self.nbytes[order].tolist(), self.alignment[order].tolist()
        for index in range(count):
            clash = (born[:index] <= dies[index]) & (dies[:index] >= born[index])
            low[index] = _hole(low[:index][clash], high[:index][clash], sizes[index], steps[index], tight)
            high[index] = low[index] + sizes[index]
        offsets = np.empty(count, dtype=np.int64)
        offsets[order] = low
        return _Packing(int(high.max()), offsets, order, tight)


def _hole(low: Ints, high: Ints, nbytes: int, step: int, tight: bool) -> int:
    """The start of the smallest (or the lowest) hole of `nbytes` between occupied spans, else the end of them all."""
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
    return int(start[fits[np.argmin(space[fits])] if tight else fits[0]])
