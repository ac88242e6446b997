"""Text as numbers: how alike two texts are, and which words one has."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, log, log1p, nan, sqrt

import numpy as np

from gradbase.tables.crowd._types import Floats

PAIRS = (("_a", "_b"), ("_l", "_r"), ("_1", "_2"), ("_left", "_right"))  # endings of columns that are compared
LEADS = (("l_", "r_"), ("left_", "right_"), ("ltable_", "rtable_"))  # the same as beginnings
WORD_COLUMNS = 1024
COMPARISONS = 23
_WORD = re.compile(r"[a-z0-9]+")
_NUMBER = re.compile(r"\s*[^\w\s.-]?\s*(-?[\d,]*\.?\d+)\s*")


def paired(columns: Iterable[str]) -> list[tuple[str, str]]:
    """Columns that say the same of two things: name_a with name_b, l_title with r_title."""
    names = sorted(columns)
    found = []
    for name in names:
        for first, second in PAIRS:
            if name.endswith(first) and name[: -len(first)] + second in names:
                found.append((name, name[: -len(first)] + second))
        for first, second in LEADS:
            if name.startswith(first) and second + name[len(first) :] in names:
                found.append((name, second + name[len(first) :]))
    return found


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Rarity:
    """How telling words are: log(texts / texts with the word); an unseen word as one seen once."""

    weights: Mapping[str, float]
    unseen: float

    @classmethod
    def of(cls, texts: Iterable[str]) -> Rarity:
        tokens = [set(words(text)) for text in texts]
        counts = Counter(word for text in tokens for word in text)
        return cls({word: log(len(tokens) / count) for word, count in counts.items()}, log(max(len(tokens), 1)))

    def __getitem__(self, word: str) -> float:
        return self.weights.get(word, self.unseen)


def compare(first: Sequence[str], second: Sequence[str], rarity: Rarity) -> Floats:
    """float64[n, 23]: likeness of texts row by row."""
    rows = [_likeness(a, b, rarity) for a, b in zip(first, second, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), COMPARISONS)


def _likeness(first: str, second: str, rarity: Rarity) -> list[float]:
    left, right = words(first), words(second)
    joined = "".join(left), "".join(right)
    return [
        *_shared_words(set(left), set(right), rarity),
        *_shared_codes(set(left), set(right), *joined),
        *_shared_letters(*joined),
        log1p(len(left)),
        log1p(len(right)),
        float(not left or not right),
        *_shared_number(first, second),
        float(bool(left) and bool(right) and left[0] == right[0]),
    ]


def _shared_words(left: set[str], right: set[str], rarity: Rarity) -> list[float]:
    """Jaccard, weighted Jaccard, cosine, weighted overlaps; the most telling word shared, and on one side alone."""
    both = left & right
    shared, of_left, of_right = (sum(rarity[word] for word in sorted(group)) for group in (both, left, right))
    squares = [sum(rarity[word] ** 2 for word in sorted(group)) for group in (both, left, right)]
    return [
        len(both) / max(len(left | right), 1),
        _ratio(shared, of_left + of_right - shared),
        _ratio(squares[0], sqrt(squares[1] * squares[2])),
        _ratio(shared, of_left),
        _ratio(shared, of_right),
        _ratio(shared, min(of_left, of_right)),
        *(max((rarity[word] for word in group), default=0.0) for group in (both, left - right, right - left)),
    ]


def _shared_codes(left: set[str], right: set[str], left_text: str, right_text: str) -> list[float]:
    """Words with digits, such as model numbers: overlap, presence, and the longest that stands within the other."""
    codes = [{word for word in group if any(c.isdigit() for c in word)} for group in (left, right)]
    both = codes[0] & codes[1]
    return [
        len(both) / max(len(codes[0] | codes[1]), 1),
        len(both) / max(min(len(codes[0]), len(codes[1])), 1),
        float(bool(codes[0])),
        float(bool(codes[1])),
        max((len(code) for code in codes[0] if len(code) >= 4 and code in right_text), default=0),
        max((len(code) for code in codes[1] if len(code) >= 4 and code in left_text), default=0),
    ]


def _shared_letters(left: str, right: str) -> list[float]:
    """Jaccard and overlap of runs of three letters."""
    grams = [{text[at : at + 3] for at in range(len(text) - 2)} for text in (left, right)]
    both = len(grams[0] & grams[1])
    return [both / max(len(grams[0] | grams[1]), 1), both / max(min(len(grams[0]), len(grams[1])), 1)]


def _shared_number(first: str, second: str) -> list[float]:
    """Where both texts are numbers: how far apart in the log; and that they are."""
    left, right = number(first), number(second)
    known = not isnan(left) and not isnan(right)
    return [abs(log1p(abs(left)) - log1p(abs(right))) if known else 0.0, float(known)]


def number(text: str) -> float:
    """The number that a text is, perhaps after a sign of currency; NaN if it is none."""
    found = _NUMBER.fullmatch(text)
    return float(found.group(1).replace(",", "")) if found else nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 1e-9 else 0.0


def bag_of_words(texts: Sequence[str], rarity: Rarity) -> Floats:
    """float64[n, 1024]: rarities of words and word pairs, hashed with a sign, rows of length one."""
    rows = np.zeros((len(texts), WORD_COLUMNS))
    for row, text in zip(rows, texts, strict=True):
        single = words(text)
        for word in (*single, *map(" ".join, zip(single, single[1:], strict=False))):
            code = zlib.crc32(word.encode())
            row[code % WORD_COLUMNS] += rarity[word] if code & 0x80000000 else -rarity[word]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
