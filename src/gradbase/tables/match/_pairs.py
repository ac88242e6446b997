"""Files of pairs: a row holds both records, in columns l_* and r_*, and perhaps a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradbase.common.errors import UsageError
from gradbase.tables.match._api import score_pairs
from gradbase.tables.match._types import Config, Labelled, Records, Result, text_of

PairTable = Mapping[str, Sequence[object]]


@dataclass(frozen=True)
class PairRows:
    """The rows of one table of pairs: rows of A and of B, and the labels, if it has any."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    label: tuple[int, ...] | None


def pair_tables(
    *tables: PairTable, left: str = "l_", right: str = "r_", label: str = "label"
) -> tuple[Records, Records, list[PairRows]]:
    """The two tables of records behind tables of pairs (column name to values), and each table's pairs.

    Records with equal values are one record, across all tables given: a pair can then be seen in the light of others
    that share a record with it. Raises UsageError for missing columns and for labels that are not 0 or 1.
    """
    columns = _columns(tables, left, right)
    sides = _Side("a", left, columns), _Side("b", right, columns)
    pairs = [PairRows(sides[0].rows(t), sides[1].rows(t), _labels(t, label)) for t in tables]
    return sides[0].records(), sides[1].records(), pairs


def score_pair_tables(pairs: PairTable, labelled: Sequence[PairTable] = (), config: Config | None = None) -> Result:
    """Score a table of pairs (l_*, r_*), after training on tables of labelled pairs of the same form, if any.

    `Result.pairs` has the rows of `pairs` in their order. A label column in `pairs` is not looked at.
    """
    asked = {name: values for name, values in pairs.items() if name != "label"}
    a, b, rows = pair_tables(asked, *labelled)
    known = [(a.ids[i], b.ids[j], y) for t in rows[1:] for i, j, y in zip(t.left, t.right, _required(t), strict=True)]
    lefts, rights, labels = zip(*known, strict=True) if known else ((), (), ())
    return score_pairs(a, b, rows[0].left, rows[0].right, Labelled(lefts, rights, labels), config)


def _required(rows: PairRows) -> tuple[int, ...]:
    if rows.label is None:
        raise UsageError("a table of labelled pairs has no column 'label'", "expected 0 or 1 in each row")
    return rows.label


def _columns(tables: Sequence[PairTable], left: str, right: str) -> list[str]:
    found = [c[len(left) :] for c in tables[0] if c.startswith(left)]
    wanted = [p + c for c in found for p in (left, right)]
    extra = [c for c in tables[0] if c.startswith(right) and c[len(right) :] not in found]
    missing = [c for t in tables for c in wanted if c not in t]
    if not found or missing or extra:
        named = ", ".join([*missing, *extra]) or f"{left}*"
        raise UsageError(
            f"column {named} of the pairs has no counterpart", f"expected {left}* and {right}* with the same names"
        )
    return found


def _labels(table: PairTable, label: str) -> tuple[int, ...] | None:
    if label not in table:
        return None
    texts = [text_of(v) for v in table[label]]
    wrong = next((k for k, t in enumerate(texts) if t not in ("0", "1")), None)
    if wrong is not None:
        raise UsageError(f"label {texts[wrong]!r} in row {wrong + 1} of the pairs is not 0 or 1", "1 is a match")
    return tuple(int(t) for t in texts if t is not None)


class _Side:
    """One side's records, gathered over tables: equal ones once."""

    def __init__(self, name: str, prefix: str, columns: Sequence[str]) -> None:
        self._name, self._prefix, self._columns = name, prefix, columns
        self._rows: dict[tuple[str | None, ...], int] = {}

    def rows(self, table: PairTable) -> tuple[int, ...]:
        values = [[*map(text_of, table[self._prefix + c])] for c in self._columns]
        return tuple(self._rows.setdefault(row, len(self._rows)) for row in zip(*values, strict=True))

    def records(self) -> Records:
        columns = {c: [row[k] for row in self._rows] for k, c in enumerate(self._columns)}
        return Records.from_columns(columns, name=self._name)
