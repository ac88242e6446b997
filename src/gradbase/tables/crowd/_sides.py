"""Two records in a row: which columns of texts are of which, and which two say the same of them.

Names may tell (`_text.paired`). Where they do not, contents may. A record comes in several rows, beside different
others, and everything that is known of it comes with it: of rows that agree in a column of one record nearly all agree
in its others, and few in those of the other record. What means the same of both is told in the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from gradbase.tables.crowd._text import paired, words
from gradbase.tables.crowd._types import Floats, Ints

COLUMNS_MAX = 12  # more are not looked at: ways to pair them grow with the factorial of half their number
EVIDENCE = 100  # pairs of rows that agree in a column, for that to tell what goes with it
APART = 0.3  # of these, the share that may agree in a column of the other record
ALIKE = 0.45  # cosine of what two columns say, by the roots of their words' counts


def sides(texts: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[tuple[str, str]]:
    """Columns that say the same of two records, by their names or else by what they hold, in the order given."""
    named = sorted(paired(texts), key=lambda pair: order.index(pair[0]))
    if named or len(order) % 2 or not 2 <= len(order) <= COLUMNS_MAX:
        return named
    return _by_content([_Column.of(name, texts[name]) for name in order])


@dataclass(frozen=True)
class _Column:
    """code: int64[n], equal for equal texts, -1 for empty ones. counts: roots of how often each word is said."""

    name: str
    code: Ints
    counts: Mapping[str, float]

    @classmethod
    def of(cls, name: str, texts: Sequence[str]) -> _Column:
        plain = [str(text) for text in texts]
        _, code = np.unique(np.array(plain, dtype=object), return_inverse=True)
        said = Counter(word for text in plain for word in words(text))
        empty = np.array([not text.strip() for text in plain], dtype=np.bool_)
        return cls(name, np.where(empty, -1, code.reshape(-1)), {word: count**0.5 for word, count in said.items()})

    @property
    def different(self) -> int:
        return len(np.unique(self.code[self.code >= 0]))


def _by_content(columns: Sequence[_Column]) -> list[tuple[str, str]]:
    tells = np.array([[_tells(one, other) for other in columns] for one in columns])
    alike = np.array([[_alike(one, other) for other in columns] for one in columns])
    leading = _leading(columns, tells, alike)
    if leading is None or np.isnan(tells[list(leading)]).any():
        return []
    nearer = tells[leading[0]] > tells[leading[1]]
    nearer[list(leading)] = True, False
    left, right = np.flatnonzero(nearer == nearer[0]), np.flatnonzero(nearer != nearer[0])
    if len(left) != len(right):
        return []
    best = max(map(list, permutations(right)), key=lambda chosen: float(alike[left, chosen].sum()))
    if alike[left, best].min() < ALIKE:
        return []
    return [(columns[one].name, columns[other].name) for one, other in zip(left, best, strict=True)]


def _leading(columns: Sequence[_Column], tells: Floats, alike: Floats) -> tuple[int, int] | None:
    """Of the columns that say the same of different records, in about the same words, the two that tell most records
    apart: they name them."""
    different = [column.different for column in columns]
    apart = [
        (one, other)
        for one, other in combinations(range(len(columns)), 2)
        if tells[one, other] <= APART and tells[other, one] <= APART and alike[one, other] >= ALIKE
    ]
    return max(apart, key=lambda pair: min(different[pair[0]], different[pair[1]]), default=None)


def _tells(one: _Column, other: _Column) -> float:
    """Of the pairs of rows that agree in one column, the share that agrees in the other; NaN where there are few."""
    both = (one.code >= 0) & (other.code >= 0)
    first, second = one.code[both], other.code[both]
    _, together = np.unique(first * (int(other.code.max(initial=0)) + 1) + second, return_counts=True)
    agreed = _pairs(np.bincount(first))
    return _pairs(together) / agreed if agreed >= EVIDENCE else float("nan")


def _pairs(sizes: Ints) -> float:
    return float((sizes * (sizes - 1)).sum() / 2)


def _alike(one: _Column, other: _Column) -> float:
    if len(one.counts) > len(other.counts):
        return _alike(other, one)
    product = sum(count * other.counts.get(word, 0.0) for word, count in sorted(one.counts.items()))
    norms = [sum(count**2 for count in sorted(column.counts.values())) ** 0.5 for column in (one, other)]
    return float(product / (norms[0] * norms[1])) if min(norms) > 0 else 0.0
