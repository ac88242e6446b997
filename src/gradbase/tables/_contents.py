"""Orders and random numbers made of what a table holds: no name, and no order of rows or columns, changes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's finalizer


def scramble(values: Hashes) -> Hashes:
    """uint64[n]: splitmix64's finalizer (Steele, Lea, Flood 2014): every input bit changes half of the output's."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return mixed ^ (mixed >> np.uint64(31))


def hashes_of_texts(texts: Iterable[str]) -> Hashes:
    """uint64[n]: equal for equal texts."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def hashes_of_numbers(numbers: NDArray[np.float64]) -> Hashes:
    """uint64 of the same shape: equal for equal numbers, and for all that are not finite."""
    plain = np.where(np.isfinite(numbers), numbers, np.nan) + 0.0  # one zero, one NaN
    return scramble(np.ascontiguousarray(plain).view(np.uint64))


def column_order(cells: Hashes) -> NDArray[np.int64]:
    """int64[columns]: an order of the columns of a table of hashes, uint64[rows, columns], by what they hold.

    First what has most different values. Columns of the same values differ by the rows that these stand in; where
    they say the same there too, they stay as they were given.
    """
    rows = scramble(scramble(cells).sum(axis=1, dtype=np.uint64))
    marks = scramble(cells + rows[:, None]).sum(axis=0, dtype=np.uint64)
    different = [len(np.unique(column)) for column in cells.T]
    return np.array(sorted(range(cells.shape[1]), key=lambda c: (-different[c], int(marks[c]), c)), dtype=np.int64)
