"""Records that stand in several pairs: how far a pair is ahead of the best other pair of either of its records.

What is compared pair by pair is alike or not; whether it is the same thing also depends on whether there is something
more alike. No label is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradbase.tables.crowd._types import Floats, Ints


def margins(likeness: Floats, records: Sequence[str]) -> Floats:
    """float64[n, d + 2]: each column of `likeness` float64[n, d] less the highest of the other rows with the same
    record (0 where there is none), whether there is none, and the log of how many rows the record has."""
    _, code = np.unique(np.array(records, dtype=object).astype(str), return_inverse=True)
    count = np.bincount(code)
    alone = count[code] == 1
    ahead = np.stack([column - _best_other(column, code, count) for column in likeness.T], 1)
    ahead[alone] = 0.0
    return np.column_stack([ahead, alone.astype(np.float64), np.log(count[code])])


def _best_other(column: Floats, code: Ints, count: Ints) -> Floats:
    """float64[n]: the highest of the other rows with a row's code; without others, of any row."""
    order = np.lexsort((-column, code))
    start = np.cumsum(count) - count
    first = order[start]
    second = order[np.minimum(start + 1, len(order) - 1)]
    other = column[first][code]
    other[first] = column[second]
    return other
