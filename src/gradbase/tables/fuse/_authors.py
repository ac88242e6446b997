"""Lists of authors: "Knuth, Donald E.; Graham, R. L." and "R. Graham & D. E. Knuth" have one key.

A key is the sorted authors, each a last name and, where known, the initial of the first one: "graham r;knuth d".
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

Author = tuple[str, str]  # last name, initial ("" where unknown)

_BETWEEN = re.compile(r"\s*(?:[;|/&]|\band\b)\s*", re.IGNORECASE)
_ASIDE = re.compile(r"\([^)]*\)?")
_TITLES = frozenset(
    ("by", "jr", "sr", "ii", "iii", "phd", "md", "dr", "prof", "mr", "mrs", "ed", "eds", "editor", "editors")
)


def author_key(value: Any) -> str:
    """The canonical form of a list of authors; the order of the list does not matter."""
    authors = {author for part in _split(_ASIDE.sub(" ", str(value))) if (author := _author(part))}
    return ";".join(f"{last} {initial}".rstrip() for last, initial in sorted(authors)) or "none"


def _split(text: str) -> list[str]:
    """Into single authors. Commas part authors only where no other sign does and each part has a first name."""
    parts = [part for part in _BETWEEN.split(text) if part.strip(" ,.")]
    if len(parts) == 1 and parts[0].count(",") > 1:
        pieces = [piece.strip() for piece in parts[0].split(",") if piece.strip()]
        if all(" " in piece for piece in pieces):
            return pieces
        return [", ".join(pieces[i : i + 2]) for i in range(0, len(pieces), 2)]
    return parts


def _author(text: str) -> Author | None:
    last, comma, first = text.partition(",")
    words = _words(last)
    firsts = _words(first)
    if not comma or not firsts:
        # "knuth d" is a last name and an initial; "donald e knuth" ends in the last name.
        if len(words) > 1 and len(words[-1]) == 1:
            return " ".join(words[:-1]), words[-1]
        words, firsts = words[-1:], words[:-1]
    return (" ".join(words), firsts[0][0] if firsts else "") if words else None


def _words(text: str) -> list[str]:
    """Lower case, no accents, no dots or apostrophes, no titles."""
    plain = unicodedata.normalize("NFKD", text).casefold().replace("'", "").replace("\u2019", "")
    kept = "".join(c if c.isalnum() else " " for c in plain if not unicodedata.combining(c))
    return [word for word in kept.split() if word not in _TITLES]


def authors_vaguer(one: str, other: str) -> bool:
    """Whether every author of one is among the others, and authors or initials are left out."""
    ours, theirs = _parsed(one), _parsed(other)
    if not _all_in(ours, theirs):
        return False
    if _all_in(theirs, ours) and len(ours) == len(theirs):
        return _initials(ours) < _initials(theirs)
    return len(ours) <= len(theirs)


def authors_resemble(one: str, other: str) -> float:
    """The share of last names in common (Jaccard's)."""
    ours, theirs = ({last for last, _ in _parsed(key)} for key in (one, other))
    return len(ours & theirs) / len(ours | theirs)


@lru_cache(maxsize=1 << 16)
def _parsed(key: str) -> tuple[Author, ...]:
    return tuple(_author_of_key(part) for part in key.split(";"))


def _author_of_key(part: str) -> Author:
    last, _, initial = part.rpartition(" ")
    return (last, initial) if last and len(initial) == 1 else (part, "")


def _all_in(ours: tuple[Author, ...], theirs: tuple[Author, ...]) -> bool:
    return all(any(_may_be(author, other) for other in theirs) for author in ours)


def _may_be(one: Author, other: Author) -> bool:
    return one[0] == other[0] and (one[1] == other[1] or not one[1] or not other[1])


def _initials(authors: tuple[Author, ...]) -> int:
    return sum(bool(initial) for _, initial in authors)
