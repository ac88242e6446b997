"""Kinds of values: which spellings are one value, and how two values of one item are related.

A kind turns raw values into keys (equal keys are one value) and may say two things of a pair of keys: that one is
a *vaguer* form of the other (a year of a date, an author list with a name left out), and how much they *resemble*
each other. `register_kind` adds one; an attribute may also bring its own functions.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradbase.common.errors import UsageError
from gradbase.tables.fuse._authors import author_key, authors_resemble, authors_vaguer
from gradbase.tables.fuse._types import Normaliser, Similarity

Vaguer = Callable[[Any, Any], bool]
"""Whether the first key says less than the second, and nothing that contradicts it."""

NEAR = 0.85  # of a similarity: from here on two values are one but for a slip


@dataclass(frozen=True)
class Kind:
    """How values are read. `key` maps one raw value to its key, None for no value."""

    name: str
    key: Callable[[Any], Any]
    similarity: Similarity | None = None
    vaguer: Vaguer | None = None
    near: float = NEAR
    whole: Normaliser | None = None  # instead of `key`: all values at once

    def keys(self, values: Sequence[Any]) -> list[Any]:
        if self.whole is not None:
            return list(self.whole(values))
        return [None if is_missing(value) else self.key(value) for value in values]


_KINDS: dict[str, Kind] = {}


def register_kind(
    name: str,
    key: Callable[[Any], Any],
    *,
    similarity: Similarity | None = None,
    vaguer: Vaguer | None = None,
    near: float = NEAR,
) -> None:
    """Make a kind known by name, or replace one. Keys have to be hashable, with a repr that tells them apart."""
    _KINDS[name] = Kind(name, key, similarity, vaguer, near)


def kinds() -> tuple[str, ...]:
    """The registered kinds."""
    return tuple(_KINDS)


def kind_named(name: str) -> Kind:
    if name not in _KINDS:
        raise UsageError(f"kind {name!r} is not known", f"expected auto or one of {', '.join(_KINDS)}")
    return _KINDS[name]


def normalise(kind: str, values: Sequence[Any]) -> list[Any]:
    """The keys of raw values; what `fuse` and its evaluation compare."""
    return kind_named(kind).keys(values)


def is_missing(value: Any) -> bool:
    """None, NaN (also of pandas) and text without a letter in it are no value."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    return bool(value != value)


# -- text


def text_key(value: Any) -> str:
    """Case, width of characters and runs of blanks do not tell values apart."""
    return " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())


# -- numbers

BEYOND_MEASURE = 1e60  # times the median of an attribute's different numbers: a slip that would drown them all
_NUMBER = re.compile(r"[-+]?(\d[\d,' ]*\d|\d)?(\.\d*)?([eE][-+]?\d+)?%?")


def to_number(value: Any) -> float | None:
    """ "1,234.50" -> 1234.5; None for what is not a finite number."""
    if isinstance(value, str):
        text = value.strip().replace("\u2212", "-")
        if not _NUMBER.fullmatch(text):
            return None
        value = re.sub(r"[,' %]", "", text)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def measure_keys(values: Sequence[Any]) -> list[float | None]:
    """The numbers; None also for those beside which all others would be nothing."""
    numbers = [None if is_missing(value) else to_number(value) for value in values]
    sizes = sorted(abs(number) for number in numbers if number)
    largest = sizes[(len(sizes) - 1) // 2] * BEYOND_MEASURE if sizes else 0.0
    return [None if number is None or abs(number) > largest > 0 else number for number in numbers]


def number_key(value: Any) -> Any:
    """The number to twelve digits, or the text where it is none."""
    number = to_number(value)
    return text_key(value) if number is None else float(f"{number:.12g}")


def numbers_resemble(one: Any, other: Any) -> float:
    """One less the relative difference; zero where either is text."""
    if isinstance(one, str) or isinstance(other, str):
        return 0.0
    largest = max(abs(one), abs(other))
    return 1.0 if largest == 0 else max(0.0, 1 - abs(one - other) / float(largest))


# -- dates

_DATE_FORMS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%Y%m%d"),
    *("%d %B %Y", "%B %d, %Y", "%d %b %Y", "%b %d, %Y"),
)
_PART_FORMS = (("%Y-%m", "%Y-%m"), ("%B %Y", "%Y-%m"), ("%b %Y", "%Y-%m"), ("%Y", "%Y"))
_TIME = re.compile(r"[T ](\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?(?:Z|[-+]\d{2}(?::?\d{2})?)?$")


def to_date(value: Any) -> str | None:
    """ISO text as far as it is known: "1984-05-02T18:45", "1984-05-02", "1984-05" or "1984"; None for what is no date.

    Of "02/03/1984" the month comes first; with dots, the day. Midnight is how tables write a day alone; zones and parts
    of seconds are not looked at.
    """
    text = " ".join(str(value).split())
    time = _TIME.search(text)
    day = _day(text if time is None else text[: time.start()])
    if day is None or time is None or len(day) < len("1984-05-02"):
        return day if time is None else None
    hour, minute, second = time[1].zfill(2), time[2], time[3] or "00"
    clock = f"{hour}:{minute}" if second == "00" else f"{hour}:{minute}:{second}"
    return day if clock == "00:00" else f"{day}T{clock}"


def _day(text: str) -> str | None:
    for form, known in (*((form, "%Y-%m-%d") for form in _DATE_FORMS), *_PART_FORMS):
        try:
            return datetime.datetime.strptime(text, form).strftime(known)
        except ValueError:
            continue
    return None


def date_key(value: Any) -> str:
    return to_date(value) or text_key(value)


def date_vaguer(one: str, other: str) -> bool:
    """A year is vaguer than its months, a month than its days, a day than its hours."""
    return other.startswith(one) and other[len(one) : len(one) + 1] in ("-", "T", ":")


def dates_resemble(one: str, other: str) -> float:
    """Dates of one length that differ in one place, or have day and month exchanged, are a slip apart."""
    if len(one) != len(other) or not one[:4].isdigit():
        return 0.0
    wrong = sum(a != b for a, b in zip(one, other, strict=True))
    exchanged = one == f"{other[:4]}-{other[8:10]}-{other[5:7]}{other[10:]}"
    return 0.9 if wrong == 1 or exchanged else 0.0


# -- names of people and things


def name_key(value: Any) -> str:
    """Words in lower case without accents or dots; "Last, First" is turned round."""
    text = str(value)
    if text.count(",") == 1:
        last, first = text.split(",")
        text = f"{first} {last}"
    plain = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(c if c.isalnum() else " " for c in plain if not unicodedata.combining(c))
    return " ".join(kept.split())


def name_vaguer(one: str, other: str) -> bool:
    """The same last word, and every word before it found in the other, in order, at least by its first letter."""
    words, others = one.split(), other.split()
    if not words or not others or words[-1] != others[-1] or len(one) >= len(other):
        return False
    rest = iter(others[:-1])
    return all(any(_initial_of(word, full) for full in rest) for word in words[:-1])


def _initial_of(word: str, full: str) -> bool:
    return word == full or (len(word) == 1 and full.startswith(word))


def names_resemble(one: str, other: str) -> float:
    """Jaro and Winkler's similarity of the words in order."""
    from rapidfuzz.distance import JaroWinkler

    return float(JaroWinkler.similarity(" ".join(sorted(one.split())), " ".join(sorted(other.split()))))


register_kind("categorical", text_key)
register_kind("number", number_key, similarity=numbers_resemble, near=0.99)
_KINDS["measure"] = Kind("measure", to_number, whole=measure_keys)
register_kind("date", date_key, similarity=dates_resemble, vaguer=date_vaguer)
register_kind("name", name_key, similarity=names_resemble, vaguer=name_vaguer, near=0.92)
register_kind("author set", author_key, similarity=authors_resemble, vaguer=authors_vaguer, near=0.0)
register_kind("set", text_key)
register_kind("hierarchy", text_key)
