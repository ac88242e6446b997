"""Candidate pairs of large tables: an inverted index over rare keys, its work bounded per record.

Keys of a record are its tokens, its neighbouring tokens written together ("cush top" meets "cushtop"), its model
numbers without punctuation, and the beginnings of long tokens. A record asks the index for its rarest keys first and
stops before it has read more than `_POSTINGS_MOST` entries, so work grows with the number of records, not with its
square; a record without a key that rare gets no candidates of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradbase.tables.match import _text
from gradbase.tables.match._bags import Bags, ranges
from gradbase.tables.match._types import Floats, Ints, Records

_POSTINGS_MOST = 400  # read for one record
_CHUNK_POSTINGS = 4_000_000
_PREFIX = 4


def candidates(left: Records, right: Records | None, most: int) -> tuple[Ints, Ints]:
    """Rows of pairs worth comparing: of each record of either table, the `most` best by common rare keys.

    For one table (right None), pairs of different rows, the lower row first.
    """
    keys_l = _keys(left)
    bags = Bags(keys_l, keys_l if right is None else _keys(right))
    forward = _search(_Index(bags.right, bags), _Index(bags.left, bags), most, right is None)
    if right is None:
        low, high = np.minimum(*forward), np.maximum(*forward)
        return _unique(low, high, len(left))
    back = _search(_Index(bags.left, bags), _Index(bags.right, bags), most, False)
    return _unique(np.concatenate([forward[0], back[1]]), np.concatenate([forward[1], back[0]]), len(right))


def _unique(left: Ints, right: Ints, width: int) -> tuple[Ints, Ints]:
    keys = np.unique(left * width + right)
    return keys // width, keys % width


def _keys(records: Records) -> list[list[str]]:
    return [_keys_of([_text.normalise(v) for v in row]) for row in zip(*records.values, strict=True)]


def _keys_of(values: list[str]) -> list[str]:
    keys: list[str] = []
    for value in values:
        tokens = _text.tokens(value)
        keys += tokens
        keys += [a + b for a, b in zip(tokens, tokens[1:], strict=False)]
        keys += [f"{t[:_PREFIX]}*" for t in tokens if len(t) > _PREFIX]
        keys += _text.codes(value)
    return keys


class _Index:
    """One table's keys: of a record (`side`), and the records of a key."""

    def __init__(self, side, bags: Bags) -> None:  # type: ignore[no-untyped-def]
        self.side, self.weight = side, bags.weight
        self.rows = len(side.start) - 1
        rows = np.repeat(np.arange(self.rows), np.diff(side.start))
        self.records = rows[np.argsort(side.words, kind="stable")]
        self.counts = np.bincount(side.words, minlength=bags.words)
        self.starts = np.cumsum(self.counts) - self.counts
        squares = np.bincount(rows, bags.weight[side.words] ** 2, minlength=self.rows)
        self.norms = np.sqrt(np.maximum(squares, 1e-12))


def _search(index: _Index, asking: _Index, most: int, same: bool) -> tuple[Ints, Ints]:
    """For each record of `asking`, its `most` best of `index`."""
    found = [_best(index, asking, *chunk, most, same) for chunk in _queries(index, asking)]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def _queries(index: _Index, asking: _Index) -> Iterator[tuple[Ints, Ints]]:
    """(record, key) entries to look up, whole records together, about `_CHUNK_POSTINGS` postings at a time."""
    rows, keys = asking.side.expand(np.arange(asking.rows))
    useful = index.counts[keys] > 0
    rows, keys = rows[useful], keys[useful]
    order = np.lexsort((keys, index.counts[keys], rows))
    rows, keys = rows[order], keys[order]
    read = np.cumsum(index.counts[keys])
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]) if len(rows) else np.zeros(0, np.int64)
    before = np.repeat(read[starts] - index.counts[keys[starts]], np.diff(np.append(starts, len(rows))))
    within = read - before <= _POSTINGS_MOST
    rows, keys = rows[within], keys[within]
    chunk = np.cumsum(index.counts[keys]) // _CHUNK_POSTINGS
    cuts = [0, *(np.searchsorted(rows, r) for r in np.unique(rows[np.flatnonzero(np.diff(chunk)) + 1])), len(rows)]
    yield from ((rows[a:b], keys[a:b]) for a, b in zip(cuts, cuts[1:], strict=False) if b > a)


def _best(index: _Index, asking: _Index, rows: Ints, keys: Ints, most: int, same: bool) -> tuple[Ints, Ints]:
    counts = index.counts[keys]
    asked = np.repeat(rows, counts)
    hit = index.records[ranges(index.starts[keys], counts)]
    weight = np.repeat(index.weight[keys] ** 2, counts)
    if same:
        other = asked != hit
        asked, hit, weight = asked[other], hit[other], weight[other]
    pairs, where = np.unique(asked * index.rows + hit, return_inverse=True)
    asked, hit = pairs // index.rows, pairs % index.rows
    likeness = np.bincount(where, weight, minlength=len(pairs)) / (asking.norms[asked] * index.norms[hit])
    return _first_of_each(asked, hit, likeness, most)


def _first_of_each(asked: Ints, hit: Ints, likeness: Floats, most: int) -> tuple[Ints, Ints]:
    order = np.lexsort((hit, -likeness, asked))
    asked, hit = asked[order], hit[order]
    starts = np.flatnonzero(np.r_[True, asked[1:] != asked[:-1]]) if len(asked) else np.zeros(0, np.int64)
    rank = np.arange(len(asked)) - np.repeat(starts, np.diff(np.append(starts, len(asked))))
    return asked[rank < most], hit[rank < most]
