"""Sets of tokens of many records as arrays: compared pair by pair without a Python loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradbase.tables.match._types import Floats, Ints

_EPSILON = 1e-9


class Bags:
    """The token sets of two lists of records, as rows of token numbers, weighted by rarity over both.

    A token in d of n records weighs log(1 + n / (d + 1/2)): its inverse document frequency.
    """

    def __init__(self, left: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> None:
        vocabulary: dict[str, int] = {}
        self.left = _Side(left, vocabulary)
        self.right = _Side(right, vocabulary)
        self.words = max(len(vocabulary), 1)
        self.frequency = self.left.frequency(self.words) + self.right.frequency(self.words)
        self.weight = np.log(1 + (len(left) + len(right)) / (self.frequency + 0.5))

    def compare(self, left: Ints, right: Ints) -> dict[str, Floats]:
        """Similarities of pairs (rows of the left list, rows of the right list), float64[pairs] each.

        cos: cosine of rarity weights; jaccard, cover_left, cover_right, cover: weight of the common tokens by that of
        the union, the left, the right, the lighter side; common, only_left, only_right: weight of the rarest such
        token; count: number of common tokens; weight_left, weight_right: the sides' weights.
        """
        pair_l, token_l = self.left.expand(left)
        pair_r, token_r = self.right.expand(right)
        keys_l, keys_r = pair_l * self.words + token_l, pair_r * self.words + token_r
        shared_l = np.isin(keys_l, keys_r, assume_unique=True)
        shared_r = np.isin(keys_r, keys_l, assume_unique=True)
        weight_l, weight_r = self.weight[token_l], self.weight[token_r]
        return _similarities(len(left), (pair_l, weight_l, shared_l), (pair_r, weight_r, shared_r))


class _Side:
    """One list of token sets: `words[start[i]:start[i + 1]]` are the token numbers of row i."""

    def __init__(self, lists: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> None:
        rows = [sorted({vocabulary.setdefault(t, len(vocabulary)) for t in tokens}) for tokens in lists]
        self.start = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        self.words = np.fromiter((w for r in rows for w in r), dtype=np.int64, count=int(self.start[-1]))

    def frequency(self, words: int) -> Floats:
        return np.bincount(self.words, minlength=words).astype(np.float64)

    def expand(self, rows: Ints) -> tuple[Ints, Ints]:
        """For rows asked for: the position of each in `rows`, once per token, and the token's number."""
        counts = self.start[rows + 1] - self.start[rows]
        return np.repeat(np.arange(len(rows)), counts), self.words[ranges(self.start[rows], counts)]


def ranges(starts: Ints, counts: Ints) -> Ints:
    """start, start + 1, ... of each start, `count` of them: one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + counts, counts)


_Entries = tuple[Ints, Floats, np.ndarray]


def _similarities(pairs: int, left: _Entries, right: _Entries) -> dict[str, Floats]:
    all_l, all_r = _sums(pairs, left[0], left[1]), _sums(pairs, right[0], right[1])
    common = _sums(pairs, left[0], left[1] * left[2])
    dot = _sums(pairs, left[0], left[1] ** 2 * left[2])
    norm = np.sqrt(_sums(pairs, left[0], left[1] ** 2) * _sums(pairs, right[0], right[1] ** 2))
    return {
        "cos": dot / (norm + _EPSILON),
        "jaccard": common / (all_l + all_r - common + _EPSILON),
        "cover_left": common / (all_l + _EPSILON),
        "cover_right": common / (all_r + _EPSILON),
        "cover": common / (np.minimum(all_l, all_r) + _EPSILON),
        "common": _most(pairs, left[0], left[1] * left[2]),
        "only_left": _most(pairs, left[0], left[1] * ~left[2]),
        "only_right": _most(pairs, right[0], right[1] * ~right[2]),
        "count": _sums(pairs, left[0], left[2].astype(np.float64)),
        "weight_left": all_l,
        "weight_right": all_r,
    }


def _sums(pairs: int, where: Ints, values: Floats) -> Floats:
    return np.bincount(where, values, minlength=pairs)


def _most(pairs: int, where: Ints, values: Floats) -> Floats:
    most = np.zeros(pairs)
    np.maximum.at(most, where, values)
    return most
