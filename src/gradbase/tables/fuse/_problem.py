"""Claims as the models see them: duplicates gone, values as candidates of items, in an order that names cannot change.

An *item* is an object with an attribute, a *candidate* one of the values claimed of it. Claims are sorted by
signatures made of what is said, never of what things are called, so that sums run in one order however rows and
names are permuted: the same answers, to the last bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gradbase.tables.fuse._kinds import Kind
from gradbase.tables.fuse._types import Claims, Coded, Floats, Ints, Objects

Hashes = npt.NDArray[np.uint64]

_UNDATED = -np.inf  # sorts before every time, and equals itself
_SPARSE = 4  # of so many times as many values as rows a table is not worth its memory


@dataclass(frozen=True)
class Problem:
    """The claims of some attributes. Claims: (claims,), candidates: (candidates,), items: (items,).

    row: the claim's row in the input, of several that say the same the most confident.
    weight: its confidence, 1 where unknown, shared among the times at which its source repeats it.
    draw: (claims,) in [0, 1), a fixed random number that depends on content only.
    cell: one number per (source, attribute, key).
    rank: (candidates,) the place of the key's text among those of all keys.
    vocabulary: (items,) how many different values the item's attribute has over all items; unseen: (items,) the share
        of them that are claimed but once: what a next claim would bring that is none of them (Good, Biometrika 1953).
    """

    row: Ints
    item: Ints
    candidate: Ints
    source: Ints
    weight: Floats
    time: Floats
    draw: Floats
    cell: Ints
    candidate_item: Ints
    key: Objects
    rank: Ints
    value: Objects
    object: Ints  # (items,)
    attribute: Ints  # (items,)
    vocabulary: Ints
    unseen: Floats
    sources: int
    kinds: Mapping[int, Kind] = field(repr=False)

    @property
    def claims(self) -> int:
        return len(self.row)

    @property
    def candidates(self) -> int:
        return len(self.candidate_item)

    @property
    def items(self) -> int:
        return len(self.object)

    def subset(self, kept: npt.NDArray[np.bool_]) -> Problem:
        """The same problem with the kept items (items,) only."""
        claims, candidates = kept[self.item], kept[self.candidate_item]
        item, candidate = np.cumsum(kept) - 1, np.cumsum(candidates) - 1
        return replace(
            self,
            row=self.row[claims],
            item=item[self.item[claims]],
            candidate=candidate[self.candidate[claims]],
            source=self.source[claims],
            weight=self.weight[claims],
            time=self.time[claims],
            draw=self.draw[claims],
            cell=self.cell[claims],
            candidate_item=item[self.candidate_item[candidates]],
            key=self.key[candidates],
            rank=self.rank[candidates],
            value=self.value[candidates],
            object=self.object[kept],
            attribute=self.attribute[kept],
            vocabulary=self.vocabulary[kept],
            unseen=self.unseen[kept],
        )

    def per_candidate(self, amounts: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Sums over claims by candidate; counts without amounts."""
        return np.bincount(self.candidate, amounts, self.candidates)

    def per_item(self, amounts: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        return np.bincount(self.item, amounts, self.items)

    def per_source(self, amounts: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        return np.bincount(self.source, amounts, self.sources)

    @cached_property
    def _speakers(self) -> tuple[Ints, Ints]:
        """(claims,) code of the (item, source) pair, and the pairs' items."""
        pair = self.item * self.sources + self.source
        order = np.argsort(pair, kind="stable")
        fresh = _starts([pair[order]])
        speaker = np.empty_like(order)
        speaker[order] = np.cumsum(fresh) - 1
        return speaker, self.item[order[fresh]]

    @cached_property
    def voice(self) -> Ints:
        """(claims,) code of the (candidate, source) pair: claims that differ in their time alone have one."""
        if np.isnan(self.time).all():
            return np.arange(self.claims)
        return np.unique(self.candidate * self.sources + self.source, return_inverse=True)[1].reshape(-1)

    def first_of_voices(self, claims: Ints) -> Ints:
        """Of these claims the first of every voice, in their order."""
        if np.isnan(self.time).all():
            return claims
        order = np.lexsort((self.time[claims], self.voice[claims]))
        return np.sort(claims[order[_starts([self.voice[claims[order]]])]])

    def sources_of_items(self, wanted: npt.NDArray[np.bool_] | None = None) -> Ints:
        """(items,) how many different sources claim something of the item, in claims that are `wanted` (claims,)."""
        speaker, item = self._speakers
        if wanted is not None:
            item = item[np.bincount(speaker[wanted], minlength=len(item)) > 0]
        return np.bincount(item, minlength=self.items)


@dataclass(frozen=True)
class Keys:
    """Every claim's key as a code within its attribute; -1 where it has no value."""

    code: Ints  # (claims,), over all attributes together
    key: Objects  # (codes,)
    value: Objects  # (codes,) the raw form claimed most often


def read_keys(claims: Claims, kinds: Mapping[int, Kind]) -> Keys:
    """Normalise every distinct value of every attribute once."""
    codes = np.full(len(claims), -1, dtype=np.int64)
    keys: list[Any] = []
    values: list[Any] = []
    for attribute, kind in kinds.items():
        rows = np.flatnonzero(claims.attribute == attribute)
        raw_codes, raws = factorize(claims.value[rows])
        local, distinct = factorize(kind.keys(raws))
        own = np.where(local >= 0, local + len(keys), -1)[raw_codes] if len(raws) else raw_codes
        codes[rows] = np.where(raw_codes >= 0, own, -1)
        counts = np.bincount(raw_codes[raw_codes >= 0], minlength=len(raws))
        values.extend(_commonest(local, raws, counts, len(distinct)))
        keys.extend(distinct)
    return Keys(codes, _objects(keys), _objects(values))


def factorize(values: Sequence[Any] | Objects | Coded) -> tuple[Ints, list[Any]]:
    """Codes (n,) and the distinct values; None and NaN get -1."""
    if isinstance(values, Coded):
        return _factorize_coded(values)
    seen: dict[Any, int] = {}
    codes = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        codes[i] = -1 if value is None or value != value else seen.setdefault(value, len(seen))
    return codes, list(seen)


def _factorize_coded(values: Coded) -> tuple[Ints, list[Any]]:
    said = np.flatnonzero(np.bincount(values.code, minlength=len(values.names)))
    local, distinct = factorize(values.names[said])
    place = np.full(len(values.names), -1, dtype=np.int64)
    place[said] = local
    return place[values.code], distinct


def _commonest(code: Ints, raws: Sequence[Any], counts: Ints, size: int) -> list[Any]:
    """For every key the raw value claimed most often; among equals the first in the order of their text."""
    best: list[tuple[int, str, Any] | None] = [None] * size
    for i, raw in enumerate(raws):
        rank = (-int(counts[i]), str(raw), raw)
        held = best[code[i]] if code[i] >= 0 else rank
        if held is None or rank[:2] < held[:2]:
            best[code[i]] = rank
    return [held[2] for held in best if held is not None]


def _objects(values: Sequence[Any]) -> Objects:
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def build(claims: Claims, kinds: Mapping[int, Kind], keys: Keys, rows: Ints) -> Problem:
    """The problem of the given rows (of attributes that share a model), without claims that say nothing new."""
    rows = rows[keys.code[rows] >= 0]
    rows, repeats = _said_once(claims, keys, rows)
    item, source, code, time = _columns(claims, keys, rows)
    text = _texts(keys.key)
    marks = _marks(item, source, code, time, text)
    order = _sorted_by(*marks, time)
    width, attributes, names = max(1, len(keys.key)), len(claims.attribute_names), len(claims.source_names)
    draw = _uniform(_mix(*marks))[order]
    weight = (_confidence(claims, rows) / repeats)[order]
    del marks, repeats
    rows, item, source, code, time = rows[order], item[order], source[order], code[order], time[order]
    items, item_names = _in_order(item)
    candidate, candidates = _in_order(items * width + code)
    attribute = item_names % attributes
    vocabulary, unseen = _vocabulary(claims.attribute[rows], code, attributes)
    said = candidates % width
    return Problem(
        row=rows,
        item=items,
        candidate=candidate,
        source=source,
        weight=weight,
        time=np.where(time == _UNDATED, np.nan, time),
        draw=draw,
        cell=_dense(source * width + code, names * width)[0],
        candidate_item=candidates // width,
        key=keys.key[said],
        rank=np.argsort(np.argsort(np.array(text, dtype=np.str_), kind="stable"), kind="stable")[said],
        value=keys.value[said],
        object=item_names // attributes,
        attribute=attribute,
        vocabulary=vocabulary[attribute],
        unseen=unseen[attribute],
        sources=names,
        kinds=kinds,
    )


def _texts(keys: Objects) -> list[str]:
    """Keys as texts that tell them apart; they stand for them wherever an order is needed."""
    return [repr(key) for key in keys]


def _said_once(claims: Claims, keys: Keys, rows: Ints) -> tuple[Ints, Floats]:
    """Of the rows that say the same one each, the most confident, and at how many different times it is said."""
    item, source, code, time = _columns(claims, keys, rows)
    speaker = item * len(claims.source_names) + source
    if all_different(speaker):  # nobody says two things of an item
        return rows, np.ones(len(rows))
    first = _first_of_each((item, source, code, time), _confidence(claims, rows))
    return rows[first], _repeats((item[first], source[first], code[first]))


def all_different(numbers: Ints) -> bool:
    """Whether no number occurs twice; of sorted ones, as they come from tables that are read, this is seen at once."""
    if (numbers[1:] > numbers[:-1]).all():
        return True
    ordered = np.sort(numbers)
    return bool((ordered[1:] != ordered[:-1]).all())


def _sorted_by(item_mark: Hashes, source_mark: Hashes, value_mark: Hashes, time: Floats) -> Ints:
    """The order of the claims: by item, by what is said of it, by whom, then by time."""
    undated = (time == _UNDATED).all()
    return np.lexsort((*(() if undated else (time,)), source_mark, value_mark, item_mark))


def _columns(claims: Claims, keys: Keys, rows: Ints) -> tuple[Ints, Ints, Ints, Floats]:
    """item, source, value and time of rows; two claims that agree in all four are one."""
    item = claims.object[rows] * len(claims.attribute_names) + claims.attribute[rows]
    time = np.full(len(rows), _UNDATED) if claims.time is None else np.nan_to_num(claims.time[rows], nan=_UNDATED)
    return item, claims.source[rows], keys.code[rows], time


def _vocabulary(attribute: Ints, code: Ints, attributes: int) -> tuple[Ints, Floats]:
    """(attributes,) how many different values are claimed of each, and the share of those that are claimed once."""
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    vocabulary = np.bincount(attribute[first], minlength=attributes)
    return vocabulary, np.bincount(attribute[first], counts == 1, attributes) / np.maximum(vocabulary, 1)


def _confidence(claims: Claims, rows: Ints) -> Floats:
    if claims.confidence is None:
        return np.ones(len(rows))
    return np.nan_to_num(claims.confidence[rows], nan=1.0)


def _starts(columns: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """(rows,) where a row of sorted columns differs from the one before it."""
    fresh = np.zeros(len(columns[0]), dtype=np.bool_)
    fresh[:1] = True
    for column in columns:
        fresh[1:] |= column[1:] != column[:-1]
    return fresh


def _first_of_each(columns: Sequence[npt.NDArray[Any]], confidence: Floats) -> Ints:
    """One position for every different row of the columns: the most confident, then the first."""
    order = np.lexsort((-confidence, *columns))  # stable
    return np.sort(order[_starts([column[order] for column in columns])])


def _repeats(columns: Sequence[npt.NDArray[Any]]) -> Floats:
    """(rows,) how many rows say the same at different times."""
    order = np.lexsort(tuple(columns))
    group = np.cumsum(_starts([column[order] for column in columns])) - 1
    repeats = np.empty(len(order))
    repeats[order] = np.bincount(group)[group] if len(order) else 0.0
    return repeats


def _in_order(values: Ints) -> tuple[Ints, Ints]:
    """Codes in order of first appearance, and the distinct values in that order. Equal values mostly follow each
    other: runs of them are looked at, not rows."""
    fresh = _starts([values])
    distinct, first, inverse = np.unique(values[fresh], return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return position[inverse][np.cumsum(fresh) - 1], distinct[order]


def _dense(values: Ints, size: int) -> tuple[Ints, int]:
    """Codes below the number of distinct values, in the order of the values, which are below `size`; and that
    number."""
    if size > _SPARSE * len(values):
        distinct, codes = np.unique(values, return_inverse=True)
        return codes, len(distinct)
    seen = np.bincount(values, minlength=size) > 0
    return (np.cumsum(seen) - 1)[values], int(seen.sum())


# -- signatures: what an item and a source are, by what is said of and by them


def _marks(item: Ints, source: Ints, code: Ints, time: Floats, texts: Sequence[str]) -> tuple[Hashes, Hashes, Hashes]:
    """(claims,) marks of item, source and value. Two rounds: what is said, then also of which items, by whom."""
    text = np.array([_hash_text(key) for key in texts], dtype=np.uint64)
    value = _mix(text[code], time.view(np.uint64))
    items, sources = (_dense(group, int(group.max(initial=-1)) + 1) for group in (item, source))
    item_mark, source_mark = np.zeros(len(item), np.uint64), np.zeros(len(item), np.uint64)
    for _ in range(2):
        said = _mix(value, item_mark, source_mark)
        item_mark, source_mark = _sum_by(*items, said), _sum_by(*sources, said)
    return item_mark, source_mark, _mix(text[code])


def _hash_text(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return zlib.crc32(data) << 32 | zlib.crc32(data, 0x9E3779B9)


def _mix(*parts: Hashes) -> Hashes:
    """One hash of several, by the finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    state = np.zeros_like(parts[0])
    for part in parts:
        state = (state ^ part) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def _sum_by(group: Ints, groups: int, hashes: Hashes) -> Hashes:
    """Every claim's sum (mod 2**64) over its group."""
    total = np.zeros(groups, dtype=np.uint64)
    np.add.at(total, group, hashes)
    return total[group]


def _uniform(hashes: Hashes) -> Floats:
    drawn: Floats = (hashes >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return drawn
