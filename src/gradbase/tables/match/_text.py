"""Texts as matching sees them: one spelling, and the pieces that are compared."""

from __future__ import annotations

import math
import re
import unicodedata

_QUOTES = re.compile(r"[`'\"’‘“”\\]")
_TOKEN = re.compile(r"\d+(?:\.\d+)?[^\W_]*|[^\W\d_][^\W_]*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NOT_CODE = re.compile(r"[\W_]")

CODE_CHARACTERS_LEAST = 4
GRAM = 3


def normalise(text: str | None) -> str:
    """Lower case, no accents, no quotes, single spaces; "" for what is missing and for texts without a letter."""
    if text is None:
        return ""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = " ".join(_QUOTES.sub("", plain).split())
    return plain if any(c.isalnum() for c in plain) else ""


def tokens(text: str) -> list[str]:
    """Words and numbers; a number keeps its fraction and what is written onto it ("7.1", "500gb")."""
    return _TOKEN.findall(text)


def grams(text: str) -> list[str]:
    """Character 3-grams of each token, its ends marked by spaces."""
    return [f" {t} "[i : i + GRAM] for t in tokens(text) for i in range(len(t))]


def numbers(text: str) -> list[str]:
    """The numbers in a text, without trailing zeros of fractions: "8.70 %" holds 8.7."""
    return [n.rstrip("0").rstrip(".") if "." in n else n for n in _NUMBER.findall(text)]


def single_number(text: str) -> float:
    """The value of a text with exactly one number, else NaN; thousands may have commas."""
    found = _NUMBER.findall(text.replace(",", ""))
    return float(found[0]) if len(found) == 1 else math.nan


def codes(text: str) -> list[str]:
    """Words that look like a model number: a digit, four characters or more, inner punctuation left out."""
    words = {_NOT_CODE.sub("", w) for w in text.split()}
    return sorted(w for w in words if len(w) >= CODE_CHARACTERS_LEAST and any(c.isdigit() for c in w))


def squeezed(text: str) -> str:
    """Letters and digits only: "f8n044-slv" is found in it as f8n044slv."""
    return _NOT_CODE.sub("", text)
