"""From names to codes, in DuckDB: of a table of names only integers are ever held here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import TableError
from gradbase.tables.io._columns import Role, resolve
from gradbase.tables.io._machine import available_bytes, refuse_too_many
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._workspace import Workspace, literal, quoted

Codes = NDArray[np.int32]
MISSING = ("", "nan", "NaN", "null", "NULL")  # besides what a format itself calls missing
_FLOATS = ("FLOAT", "DOUBLE", "DECIMAL")
_WHOLE = "^(0|-?[1-9][0-9]{0,17})$"
_SORTABLE = 2**62


@dataclass(frozen=True)
class CodedTable:
    """Distinct rows in the order of their codes, which follow the order of the names: whatever order the input had,
    this is the same.

    `codes[role]` int32[rows], -1 where an optional role says nothing; `names[role]` int64 where every name is a whole
    number, else objects (str). `columns` maps roles to the input's columns. `rows_read` counts the input's rows,
    `rows_missing` those without a required entry (left out), `rows_repeated` those that were there before.
    """

    codes: Mapping[str, Codes]
    names: Mapping[str, NDArray[Any]]
    columns: Mapping[str, str]
    rows_read: int
    rows_missing: int
    rows_repeated: int

    def __len__(self) -> int:
        return len(next(iter(self.codes.values())))

    def column(self, role: str) -> NDArray[Any]:
        """The names of a role, row by row."""
        return self.names[role][self.codes[role]]


def read_coded(
    scan: Scan,
    workspace: Workspace,
    roles: Sequence[Role],
    given: Mapping[str, str] | None = None,
    *,
    available: int | None = None,
) -> CodedTable:
    """Read the columns of `roles`. Raises TableError, also for rows that do not fit into memory.

    `available` bytes of memory; what the machine has where it is not given.
    """
    columns = resolve(list(scan.columns), roles, given, scan.name)
    refuse_too_many(scan.name, scan.rows, available_bytes() if available is None else available)
    required = [role.name for role in roles if role.required and role.name in columns]
    read = _load(scan, workspace, columns)
    complete = " AND ".join(f"{quoted(role)} IS NOT NULL" for role in required)
    rows = workspace.value(f"SELECT count(*) FROM raw WHERE {complete}")
    _refuse_nothing(scan.name, read, rows, required)
    names = {role: _names(workspace, role) for role in columns}
    codes = _codes(workspace, list(columns), complete, rows)
    workspace.rows("DROP TABLE raw")
    distinct = distinct_rows(list(codes.values()), [len(names[role]) for role in columns])
    found = dict(zip(columns, distinct, strict=True))
    return CodedTable(found, names, columns, read, read - rows, rows - len(distinct[0]))


def _refuse_nothing(name: str, read: int, rows: int, required: Sequence[str]) -> None:
    if not read:
        raise TableError(f"{name} has no rows", "expected one row per claim")
    if not rows:
        raise TableError(f"none of the {read} rows of {name} has all of {', '.join(required)}", "check the columns")


def _load(scan: Scan, workspace: Workspace, columns: Mapping[str, str]) -> int:
    """Copy the columns, as text, into the table `raw`: inputs can be read once, and names are needed before codes."""
    texts = [f"{as_text(c, scan.columns[c], scan.name)} AS {quoted(role)}" for role, c in columns.items()]
    source = scan.relation(list(dict.fromkeys(columns.values())))
    try:
        workspace.rows(f"CREATE TEMP TABLE raw AS SELECT {', '.join(texts)} FROM {source}")
    except TableError as error:
        raise TableError(f"{scan.name} cannot be read: {error.problem}", *error.remedies) from error
    return int(workspace.value("SELECT count(*) FROM raw"))


def as_text(column: str, kind: str, where: str) -> str:
    """SQL that gives a column as text: whole floats as integers, NULL for what is missing."""
    name = quoted(column)
    if "[" in kind or kind.startswith(("STRUCT", "MAP", "UNION", "BLOB", "LIST")):
        raise TableError(f"column {column!r} of {where} holds {kind}, expected one name or number a row")
    if kind.startswith(_FLOATS):
        value = f"CAST({name} AS DOUBLE)"
        whole = f"{value} = trunc({value}) AND abs({value}) < 9007199254740992"
        return (
            f"CASE WHEN isnan({value}) THEN NULL WHEN {whole} THEN CAST(CAST({value} AS BIGINT) AS VARCHAR)"
            f" ELSE CAST({value} AS VARCHAR) END"
        )
    text = f"CAST({name} AS VARCHAR)"
    missing = ", ".join(map(literal, MISSING))
    return f"CASE WHEN trim({text}) IN ({missing}) THEN NULL ELSE {text} END"


def _names(workspace: Workspace, role: str) -> NDArray[Any]:
    """Distinct names in order, also as the table `names_ROLE` with their codes."""
    column, table = quoted(role), quoted(f"names_{role}")
    workspace.rows(
        f"CREATE TEMP TABLE distinct_names AS SELECT DISTINCT {column} AS name FROM raw WHERE {column} IS NOT NULL"
    )
    every = f"bool_and(regexp_matches(name, {literal(_WHOLE)}))"
    whole = workspace.value(f"SELECT coalesce({every}, false) FROM distinct_names")
    order = "CAST(name AS BIGINT)" if whole else "name"
    workspace.rows(
        f"CREATE TEMP TABLE {table} AS SELECT name, CAST(row_number() OVER (ORDER BY {order}) - 1 AS INTEGER) AS code"
        " FROM distinct_names"
    )
    workspace.rows("DROP TABLE distinct_names")
    names = workspace.table(f"SELECT {order} AS name FROM {table} ORDER BY code")["name"]
    return names.to_numpy() if whole else names.to_numpy().astype(object)


def _codes(workspace: Workspace, roles: Sequence[str], complete: str, rows: int) -> dict[str, Codes]:
    """The rows as codes, batch by batch, in no order."""
    tables = {role: quoted(f"names_{role}") for role in roles}
    joins = " ".join(f"LEFT JOIN {t} ON raw.{quoted(role)} = {t}.name" for role, t in tables.items())
    columns = ", ".join(f"coalesce({t}.code, -1)" for t in tables.values())
    codes = [np.empty(rows, dtype=np.int32) for _ in roles]
    done = 0
    for batch in workspace.batches(f"SELECT {columns} FROM raw {joins} WHERE {complete}"):
        for filled, column in zip(codes, batch.columns, strict=True):
            filled[done : done + batch.num_rows] = column.to_numpy()
        done += batch.num_rows
    assert done == rows, (done, rows)
    for table in tables.values():
        workspace.rows(f"DROP TABLE {table}")
    return dict(zip(roles, codes, strict=True))


def distinct_rows(columns: Sequence[Codes], sizes: Sequence[int]) -> list[Codes]:
    """Distinct rows in order. Codes are -1 to size - 1; where they fit, rows are sorted as one integer."""
    if math.prod(size + 1 for size in sizes) < _SORTABLE:
        return _by_key(columns, sizes)
    order = np.lexsort(columns[::-1])
    placed = [column[order] for column in columns]
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in placed], axis=0)
    return [column[new] for column in placed]


def _by_key(columns: Sequence[Codes], sizes: Sequence[int]) -> list[Codes]:
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for column, size in zip(columns, sizes, strict=True):
        key *= size + 1
        key += column
        key += 1
    key.sort()
    new = np.ones(len(key), dtype=bool)
    new[1:] = key[1:] != key[:-1]
    key = key[new]
    found: list[Codes] = []
    for size in reversed(sizes):
        found.append((key % (size + 1) - 1).astype(np.int32))
        key //= size + 1
    return found[::-1]
