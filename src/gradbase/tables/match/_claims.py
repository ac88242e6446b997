"""From clusters to claims: what each record says about the thing that its cluster stands for."""

from __future__ import annotations

from collections.abc import Sequence

from gradbase.common.errors import UsageError
from gradbase.tables.match._types import Columns, Records, Result


def claims(result: Result, source_column: str | None = None) -> Columns:
    """object, attribute, source, value: a claim for each cell of each record, for `fuse` to decide.

    The object is the record's cluster, the attribute the column, the source the record's table, or its value in
    `source_column` (a record without one speaks for its table; the column itself makes no claims). Several records of a
    table in one cluster are as many sources, "a", "a (2)", ..., in the order of their values: what two of them say
    alike counts twice. Missing cells make no claim. Raises UsageError where `source_column` is not a column.
    """
    tables = [result.records_a] if result.records_b is None else [result.records_a, result.records_b]
    rows: list[tuple[str, str, str, str]] = []
    start = 0
    for records in tables:
        objects = result.clusters[start : start + len(records)]
        start += len(records)
        sources = _sources(records, objects, source_column)
        for attribute, values in zip(records.columns, records.values, strict=True):
            if attribute != source_column:
                told = zip(objects, sources, values, strict=True)
                rows += [(thing, attribute, source, value) for thing, source, value in told if value is not None]
    return {name: [row[k] for row in rows] for k, name in enumerate(("object", "attribute", "source", "value"))}


def _sources(records: Records, objects: Sequence[str], column: str | None) -> list[str]:
    if column is None:
        return [records.name if rank == 1 else f"{records.name} ({rank})" for rank in _ranks(records, objects)]
    if column not in records.columns:
        raise UsageError(
            f"source column {column!r} is no column of table {records.name!r}",
            f"expected one of {', '.join(records.columns)}",
        )
    return [value or records.name for value in records.values[records.columns.index(column)]]


def _ranks(records: Records, objects: Sequence[str]) -> list[int]:
    """1 for the first record of a cluster by its values, 2 for the next."""
    values = [tuple(cell or "" for cell in row) for row in zip(*records.values, strict=True)]
    ranks, seen = [0] * len(records), dict[str, int]()
    for row in sorted(range(len(records)), key=lambda row: values[row]):
        ranks[row] = seen[objects[row]] = seen.get(objects[row], 0) + 1
    return ranks
