"""Static addresses: blocks that overlap in time must not overlap in the arena, and the arena should be small.

Offsets are found by placing blocks one after the other into the best hole among those alive at the same time (the
offline dynamic storage allocation problem). Several orders are tried; then the order is repaired: blocks that stick
out at the top are placed earlier next time (squeaky wheel).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


# Pairs of blocks compared, over all tries, before the best packing so far is taken; and tries, at most.
_COMPARISONS = 150_000_000
_TRIES = 120
# Up to so many blocks, plain lists are faster than arrays.
_FEW = 800
# A try is given up where it is this much higher than the best packing.
_WORSE = 1.1


def pack(
    born: Sequence[int], dies: Sequence[int], nbytes: Sequence[int], alignment: Sequence[int], enough: int,
    *, thorough: bool = True,
) -> tuple[list[int], int]:
    """Offsets of blocks alive from `born` to `dies` (inclusive), and the arena's size.

    Stops at the first packing not above `enough` bytes, or of no more than are alive at one time. Unless `thorough`,
    only a few orders are tried.
    """
    if not nbytes:
        return [], 0
    blocks = _Blocks(*(np.array(x, dtype=np.int64) for x in (born, dies, nbytes, alignment)))
    enough = max(enough, blocks.most_alive())
    tries = max(4, min(_TRIES, _COMPARISONS // len(nbytes) ** 2))
    best = _first_orders(blocks, enough, tries)
    if thorough:
        best = _squeak(blocks, best, enough, tries // 2)
    return best.offsets, best.height


@dataclass(frozen=True, slots=True)
class _Packing:
    height: int
    offsets: list[int]
    order: list[int]
    tight: bool


def _first_orders(blocks: _Blocks, enough: int, tries: int) -> _Packing:
    best: _Packing | None = None
    for order, tight in list(product(blocks.orders(), (True, False)))[:tries]:
        packing = blocks.place(order, tight, best.height if best else None)
        if packing is not None and (best is None or packing.height < best.height):
            best = packing
        if best is not None and best.height <= enough:
            break
    assert best is not None
    return best


def _squeak(blocks: _Blocks, best: _Packing, enough: int, tries: int) -> _Packing:
    random, packing = np.random.default_rng(0), best
    for _ in range(tries):
        if best.height <= enough:
            break
        order = _promote(blocks, packing, random)
        packing = blocks.place(order, packing.tight, int(best.height * _WORSE)) or best
        if packing.height < best.height:
            best = packing
    return best


def _promote(blocks: _Blocks, packing: _Packing, random: np.random.Generator) -> list[int]:
    """Move the blocks at the very top some way towards the front."""
    order = list(packing.order)
    for block, offset in enumerate(packing.offsets):
        if offset + blocks.sizes[block] == packing.height:
            at = order.index(block)
            order.insert(int(random.integers(0, at + 1)), order.pop(at))
    return order


class _Blocks:
    def __init__(self, born: Ints, dies: Ints, nbytes: Ints, alignment: Ints) -> None:
        self.born, self.dies, self.nbytes = born, dies, nbytes
        self.sizes, self.steps = nbytes.tolist(), alignment.tolist()
        # One row per block: which others are alive at the same time.
        self.clashes = (born[:, None] <= dies[None, :]) & (dies[:, None] >= born[None, :])
        self.clash_bytes = [row.tobytes() for row in self.clashes] if len(born) <= _FEW else []

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
            (born, -size * length, -crowd),
            (born, -size * length),
            (born, -size, -length),
            (born, -length, -crowd),
            (born, -size, -crowd),
            (born, -size * np.sqrt(length)),
            (born, -length * np.sqrt(size)),
            (born, -length, -size),
            (-size, born),
        ]
        if len(born) > _FEW:
            # In long steps with many short lives, placing blocks as they come wastes least.
            keys = keys[-1:] + keys[:-1]
        return [np.lexsort(key).tolist() for key in keys]

    def place(self, order: list[int], tight: bool, limit: int | None) -> _Packing | None:
        """Place blocks in an order: each in its tightest hole or in its lowest. None once one ends above `limit`."""
        spans = _FewSpans(self.clash_bytes) if self.clash_bytes else _ManySpans(self.clashes)
        offsets, height = [0] * len(order), 0
        for block in order:
            low = spans.hole(block, self.sizes[block], self.steps[block], tight)
            high = low + self.sizes[block]
            if limit is not None and high > limit:
                return None
            spans.add(block, low, high)
            offsets[block] = low
            height = max(height, high)
        return _Packing(height, offsets, order, tight)


class _FewSpans:
    """Occupied spans as a sorted list, scanned in Python: faster than arrays for some hundred blocks."""

    def __init__(self, clashes: list[bytes]) -> None:
        self.clashes = clashes
        self.placed: list[tuple[int, int, int]] = []  # low, high, block

    def add(self, block: int, low: int, high: int) -> None:
        insort(self.placed, (low, high, block))

    def hole(self, block: int, nbytes: int, step: int, tight: bool) -> int:
        """The start of the smallest (or the lowest) hole between spans that clash, else the end of them all."""
        clash, start, best, best_space = self.clashes[block], 0, -1, 0
        for low, high, other in self.placed:
            if not clash[other]:
                continue
            space = low - start
            if space >= nbytes and (best < 0 or space < best_space):
                best, best_space = start, space
                if not tight or space == nbytes:
                    break
            if high > start:
                start = -(-high // step) * step
        return best if best >= 0 else start


class _ManySpans:
    """The same over arrays, for thousands of blocks."""

    def __init__(self, clashes: NDArray[np.bool_]) -> None:
        self.clashes = clashes
        self.low, self.high = (np.zeros(len(clashes), dtype=np.int64) for _ in range(2))
        self.is_placed = np.zeros(len(clashes), dtype=np.bool_)

    def add(self, block: int, low: int, high: int) -> None:
        self.low[block], self.high[block], self.is_placed[block] = low, high, True

    def hole(self, block: int, nbytes: int, step: int, tight: bool) -> int:
        """As in _FewSpans."""
        among = np.flatnonzero(self.clashes[block] & self.is_placed)
        low = self.low[among]
        by_low = np.lexsort((self.high[among], low))
        low = low[by_low]
        start = np.zeros(len(low) + 1, dtype=np.int64)
        np.maximum.accumulate(self.high[among[by_low]], out=start[1:])
        start = -(-start // step) * step
        space = low - start[:-1]
        fits = np.flatnonzero(space >= nbytes)
        if not len(fits):
            return int(start[-1])
        return int(start[fits[space[fits].argmin()] if tight else fits[0]])
