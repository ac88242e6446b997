"""Features of items as one matrix, and an item's content as a number that folds and order come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradbase.common.errors import UsageError
from gradbase.tables._contents import column_order, hashes_of_numbers, hashes_of_texts
from gradbase.tables.crowd._rivals import margins
from gradbase.tables.crowd._sides import sides
from gradbase.tables.crowd._text import Rarity, bag_of_words, compare
from gradbase.tables.crowd._types import Features, Floats

LIMIT = 6.0  # in standard deviations: beyond, a value says no more


def check(features: Features, n_items: int) -> None:
    """Raise UsageError unless every column has a row per item and there is any column."""
    columns = {"numeric": features.numeric, "embedding": features.embedding, **features.text}
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if not lengths:
        raise UsageError("there are no features", "give a numeric column, a text column or an embedding")
    for name, length in lengths.items():
        if length != n_items:
            raise UsageError(
                f"features {name!r} have {length} rows, expected {n_items}: one per item, in the order of the items"
            )


def spread(features: Features, place: NDArray[np.int64], items: NDArray[Any]) -> Features:
    """The features of the items at `place` among `items`; nothing is known of the others."""

    def matrix(part: Any) -> Any:
        if part is None:
            return None
        known = _plain(part)
        wide = np.full((len(items), known.shape[1]), np.nan)
        wide[place] = known
        return wide

    def column(texts: Sequence[str]) -> list[str]:
        wide = [""] * len(items)
        for at, text in zip(place.tolist(), texts, strict=True):
            wide[at] = text
        return wide

    texts = {name: column(texts) for name, texts in features.text.items()}
    return Features(matrix(features.numeric), texts, matrix(features.embedding))


@dataclass(frozen=True)
class Order:
    """Columns of numbers and of texts in an order made of what they hold, not of names: which weights they start
    from, and the folds of items, would change with it. The columns of an embedding stay as they are."""

    numbers: NDArray[np.int64]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, features: Features) -> Order:
        names = sorted(features.text)
        parts = [hashes_of_texts(map(str, features.text[name])) for name in names]
        if features.numeric is not None:
            parts = [*hashes_of_numbers(_plain(features.numeric)).T, *parts]
        if not parts:
            return cls(np.empty(0, dtype=np.int64), ())
        order, width = column_order(np.stack(parts, axis=1)), len(parts) - len(names)
        return cls(order[order < width], tuple(names[place - width] for place in order if place >= width))

    def matrices(self, features: Features) -> list[Floats]:
        """The numbers of `features` in this order, and the embedding."""
        numeric = [] if features.numeric is None else [_plain(features.numeric)[:, self.numbers]]
        return [*numeric, *([] if features.embedding is None else [_plain(features.embedding)])]


def _plain(matrix: Any) -> Floats:
    return np.asarray(matrix, dtype=np.float64).reshape(len(matrix), -1)


def content_hashes(features: Features, order: Order) -> NDArray[np.uint64]:
    """uint64[n_items]: equal for items with equal features, whatever they are called and in which order they come."""
    numbers = [np.ascontiguousarray(part) for part in order.matrices(features)]
    texts = [features.text[name] for name in order.texts]

    def of(row: int) -> int:
        digest = hashlib.blake2b(digest_size=8)
        for part in numbers:
            digest.update((part[row] + 0.0).tobytes())
        for column in texts:
            digest.update(str(column[row]).encode() + b"\0")
        return int.from_bytes(digest.digest(), "little")

    return np.array([of(row) for row in range(len(features))], dtype=np.uint64)


@dataclass(frozen=True)
class Encoder:
    """Features to float32[n, d], with rarities of words and scales learned once."""

    order: Order
    pairs: list[tuple[str, str]]
    rarity: Rarity
    centre: Floats
    scale: Floats

    @classmethod
    def of(cls, features: Features, order: Order) -> Encoder:
        """Learned from the features of all items; no label is looked at."""
        rarity = Rarity.of(text for column in features.text.values() for text in column)
        encoder = cls(order, sides(features.text, order.texts), rarity, np.zeros(1), np.ones(1))
        raw = encoder._raw(features)
        known = np.maximum(np.isfinite(raw).sum(0), 1)
        centre = np.nansum(raw, 0) / known
        scale = np.sqrt(np.nansum((raw - centre) ** 2, 0) / known)
        return replace(encoder, centre=centre, scale=np.where(scale > 1e-9, scale, np.inf))

    def __call__(self, features: Features) -> Tensor:
        standard = (self._raw(features) - self.centre) / self.scale
        return torch.from_numpy(np.clip(np.nan_to_num(standard), -LIMIT, LIMIT)).float()

    def _raw(self, features: Features) -> Floats:
        parts = self.order.matrices(features)
        if features.numeric is not None:
            parts[0] = _numbers(parts[0])
        if self.pairs:
            parts.append(self._compared(features))
        compared = {name for pair in self.pairs for name in pair}
        for name in (name for name in self.order.texts if name not in compared):
            parts.append(bag_of_words(features.text[name], self.rarity))
        return np.concatenate(parts, 1)

    def _compared(self, features: Features) -> Floats:
        """Likeness of every pair of columns and of all together, and by how much other pairs are less alike."""
        left, right = (_together(features, side) for side in zip(*self.pairs, strict=True))
        columns = [compare(features.text[first], features.text[second], self.rarity) for first, second in self.pairs]
        if len(self.pairs) > 1:
            columns.append(compare(left, right, self.rarity))
        likeness = np.concatenate(columns, 1)
        return np.concatenate([likeness, margins(likeness, left), margins(likeness, right)], 1)


def _together(features: Features, names: tuple[str, ...]) -> list[str]:
    return [" ".join(texts) for texts in zip(*(features.text[name] for name in names), strict=True)]


def _numbers(columns: Floats) -> Floats:
    """Columns, with NaN for what is not finite, and for each whether it is known."""
    known = np.isfinite(columns)
    return np.concatenate([np.where(known, columns, np.nan), known.astype(np.float64)], 1)
