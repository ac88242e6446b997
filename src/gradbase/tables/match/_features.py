"""How alike two records are, in numbers: per column, over whole records, and of a column within the other record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.tables.match import _text
from gradbase.tables.match._bags import Bags
from gradbase.tables.match._types import Floats, Ints, Records

WHOLE = ""  # the "column" of features that read the whole record

EDITED_CHARACTERS_MAX = 2000  # edits are counted over the beginning of a text, for they take the product of lengths
_CHUNK_PAIRS = 20_000  # bounds the memory of one comparison, not its result
_CODE_CONTAINED_LEAST = 5
_CODE_PREFIX_LEAST = 4
_NUMERIC_SHARE = 0.05  # of the values of a column, on both sides, for it to be compared as numbers
_BAG_PARTS = ("cos", "jaccard", "cover_left", "cover_right", "cover", "common", "only_left", "only_right", "count")
_NUMBER_PARTS = ("cos", "cover", "only_left", "only_right", "common")

Block = dict[tuple[str, str], Floats]  # (column, feature) -> one number a pair


@dataclass(frozen=True)
class Features:
    """float32[pairs, features], the features' names and the column each reads (WHOLE: all)."""

    values: NDArray[np.float32]
    names: tuple[str, ...]
    columns: tuple[str, ...]

    def of(self, column: str, name: str) -> NDArray[np.float32]:
        """One feature's values."""
        return self.values[:, list(zip(self.columns, self.names, strict=True)).index((column, name))]


def compare(left: Records, right: Records, rows_l: Ints, rows_r: Ints) -> Features:
    """Compare pairs of records: rows of `left` and of `right`, which have the same columns."""
    comparers = _comparers(left, right)
    parts = []
    named: Block = {}
    for start in range(0, max(len(rows_l), 1), _CHUNK_PAIRS):
        l, r = rows_l[start : start + _CHUNK_PAIRS], rows_r[start : start + _CHUNK_PAIRS]  # noqa: E741
        named = {key: values for comparer in comparers for key, values in comparer(l, r).items()}
        parts.append(np.stack(list(named.values()), axis=1).astype(np.float32))
    return Features(np.concatenate(parts), tuple(k[1] for k in named), tuple(k[0] for k in named))


def _comparers(left: Records, right: Records) -> list[Callable[[Ints, Ints], Block]]:
    texts_l, texts_r = (
        [[*map(_text.normalise, v)] for v in left.values],
        [[*map(_text.normalise, v)] for v in right.values],
    )
    whole_l, whole_r = _joined(texts_l), _joined(texts_r)
    found: list[Callable[[Ints, Ints], Block]] = [
        _Column(name, a, b).compare for name, a, b in zip(left.columns, texts_l, texts_r, strict=True)
    ]
    found.append(_Column(WHOLE, whole_l, whole_r).compare)
    for name, a, b in zip(left.columns, texts_l, texts_r, strict=True):
        found.append(_Within(name, a, whole_r, "left").compare)
        found.append(_Within(name, b, whole_l, "right").compare)
    found.append(_Codes(whole_l, whole_r).compare)
    return found


def _joined(columns: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(filter(None, row)) for row in zip(*columns, strict=True)]


class _Column:
    """Compares the values of one column, or whole records."""

    def __init__(self, name: str, left: Sequence[str], right: Sequence[str]) -> None:
        self._name = name
        self._texts = [" ".join(_text.tokens(t)) for t in left], [" ".join(_text.tokens(t)) for t in right]
        self._present = np.array([bool(t) for t in left]), np.array([bool(t) for t in right])
        self._tokens = Bags([*map(_text.tokens, left)], [*map(_text.tokens, right)])
        self._grams = Bags([*map(_text.grams, left)], [*map(_text.grams, right)])
        numbers = [*map(_text.numbers, left)], [*map(_text.numbers, right)]
        self._numbers = Bags(*numbers) if any(numbers[0]) and any(numbers[1]) else None
        values = np.array([*map(_text.single_number, left)]), np.array([*map(_text.single_number, right)])
        self._values = values if all(np.isfinite(v).mean() > _NUMERIC_SHARE for v in values) else None

    def compare(self, left: Ints, right: Ints) -> Block:
        in_l, in_r = self._present[0][left], self._present[1][right]
        both = in_l & in_r
        block = {"present": both.astype(np.float64), "missing in one": (in_l != in_r).astype(np.float64)}
        for part in (self._strings, self._sets, self._numerals, self._amounts):
            block |= {name: np.where(both, values, 0.0) for name, values in part(left, right)}
        return {(self._name, name): values for name, values in block.items()}

    def _strings(self, left: Ints, right: Ints) -> Iterator[tuple[str, Floats]]:
        texts = [self._texts[0][i] for i in left], [self._texts[1][j] for j in right]
        yield "equal", np.array([a == b for a, b in zip(*texts, strict=True)], dtype=np.float64)
        for name, scorer, scale in _scorers():
            yield name, _scored(texts, scorer) / scale

    def _sets(self, left: Ints, right: Ints) -> Iterator[tuple[str, Floats]]:
        words = self._tokens.compare(left, right)
        yield from ((f"tokens {part}", words[part]) for part in _BAG_PARTS)
        grams = self._grams.compare(left, right)
        yield from ((f"3-grams {part}", grams[part]) for part in ("cos", "cover"))

    def _numerals(self, left: Ints, right: Ints) -> Iterator[tuple[str, Floats]]:
        if self._numbers is None:
            return
        found = self._numbers.compare(left, right)
        yield from ((f"numbers {part}", found[part]) for part in _NUMBER_PARTS)
        yield "numbers in both", ((found["weight_left"] > 0) & (found["weight_right"] > 0)).astype(np.float64)

    def _amounts(self, left: Ints, right: Ints) -> Iterator[tuple[str, Floats]]:
        """The relative difference of two numbers, as -log, from 0 (unlike) to about 7 (equal)."""
        if self._values is None:
            return
        a, b = self._values[0][left], self._values[1][right]
        known = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(known, a, 1.0), np.where(known, b, 1.0)
        difference = np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-9)
        yield "amount known", known.astype(np.float64)
        yield "amount near", np.where(known, -np.log(difference + 1e-3), 0.0)
        yield "amount equal", (known & (difference < 0.01)).astype(np.float64)


class _Within:
    """How much of one column's value is found anywhere in the other record: values that sit in another column."""

    def __init__(self, name: str, column: Sequence[str], whole: Sequence[str], side: str) -> None:
        self._name, self._side = name, side
        self._bags = Bags([*map(_text.tokens, column)], [*map(_text.tokens, whole)])

    def compare(self, left: Ints, right: Ints) -> Block:
        found = self._bags.compare(*((left, right) if self._side == "left" else (right, left)))
        parts = {"cover": "cover_left", "only": "only_left", "jaccard": "jaccard"}
        return {(self._name, f"{self._side} in record {name}"): found[part] for name, part in parts.items()}


class _Codes:
    """Agreement of what looks like model numbers, also when written apart ("f8n044-slv") or cut short."""

    _NAMES = ("same", "alike", "prefix", "left contained", "right contained", "in both", "in conflict", "in one")

    def __init__(self, left: Sequence[str], right: Sequence[str]) -> None:
        self._codes = [*map(_text.codes, left)], [*map(_text.codes, right)]
        self._squeezed = [*map(_text.squeezed, left)], [*map(_text.squeezed, right)]
        rows = len(left) + len(right)
        frequency: dict[str, int] = {}
        for code in (c for side in self._codes for row in side for c in row):
            frequency[code] = frequency.get(code, 0) + 1
        self._weight = {code: float(np.log(1 + rows / n)) for code, n in frequency.items()}

    def compare(self, left: Ints, right: Ints) -> Block:
        rows = [self._pair(i, j) for i, j in zip(left.tolist(), right.tolist(), strict=True)]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(self._NAMES))
        return {(WHOLE, f"codes {name}"): table[:, k] for k, name in enumerate(self._NAMES)}

    def _pair(self, i: int, j: int) -> tuple[float, ...]:
        a, b = self._codes[0][i], self._codes[1][j]
        same = max((self._weight[x] for x in a if x in b), default=0.0)
        in_right = self._contained(a, self._squeezed[1][j])
        in_left = self._contained(b, self._squeezed[0][i])
        alike = _most_alike(a, b)
        prefix = max((_common_prefix(x, y) for x in a for y in b), default=0.0)
        both = bool(a and b)
        conflict = both and max(same, in_left, in_right) == 0.0
        return same, alike, prefix, in_right, in_left, float(both), float(conflict), float(bool(a) != bool(b))

    def _contained(self, codes: Sequence[str], text: str) -> float:
        return max((self._weight[c] for c in codes if len(c) >= _CODE_CONTAINED_LEAST and c in text), default=0.0)


def _common_prefix(a: str, b: str) -> float:
    """The share of the shorter code that both begin with; 0 below four characters."""
    shorter = min(len(a), len(b))
    same = next((k for k in range(shorter) if a[k] != b[k]), shorter)
    return same / shorter if same >= _CODE_PREFIX_LEAST else 0.0


def _most_alike(a: Sequence[str], b: Sequence[str]) -> float:
    levenshtein = _rapidfuzz().distance.Levenshtein.normalized_similarity
    return max((levenshtein(x, y) for x in a for y in b), default=0.0)


def _scored(texts: tuple[list[str], list[str]], scorer: Callable[..., float]) -> Floats:
    first = ([text[:EDITED_CHARACTERS_MAX] for text in side] for side in texts)
    return np.asarray(_rapidfuzz().process.cpdist(*first, scorer=scorer), dtype=np.float64)


def _scorers() -> list[tuple[str, Callable[..., float], float]]:
    """Name, function and the score of equal texts."""
    fuzz, winkler = _rapidfuzz().fuzz, _rapidfuzz().distance.JaroWinkler.similarity
    percent = {
        "edits": fuzz.ratio,
        "edits of sorted tokens": fuzz.token_sort_ratio,
        "edits of common tokens": fuzz.token_set_ratio,
        "edits within": fuzz.partial_ratio,
    }
    return [*((name, scorer, 100.0) for name, scorer in percent.items()), ("Jaro-Winkler", winkler, 1.0)]


def _rapidfuzz():  # type: ignore[no-untyped-def]
    """Imported where it is used: records are compared only where the extra is there."""
    try:
        import rapidfuzz
        import rapidfuzz.distance
        import rapidfuzz.process
    except ImportError as error:
        raise UsageError(
            "matching compares texts with rapidfuzz, which is missing", "pip install 'gradbase[tables]'"
        ) from error
    return rapidfuzz
