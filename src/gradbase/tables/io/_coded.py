"""From names to codes, in DuckDB: of a table of names only integers are ever held here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import TableError
from gradbase.tables.io._columns import Role, resolve
from gradbase.tables.io._machine import LABEL_BYTES, available_bytes, refuse_too_many
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._workspace import Workspace, literal, quoted, unread

Codes = NDArray[np.int32]
MISSING = ("", "nan", "NaN", "null", "NULL")  # besides what a format itself calls missing
_FLOATS = ("FLOAT", "DOUBLE", "DECIMAL")
_WHOLE = "^(0|-?[1-9][0-9]{0,17})$"
_SORTABLE = 2**62
_BLOCK_ROWS = 1 << 20


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

    def counts(self) -> dict[str, int]:
        """Rows read, and why there are fewer here."""
        return {"rows": self.rows_read, "rows_missing": self.rows_missing, "rows_repeated": self.rows_repeated}

    def column(self, role: str) -> NDArray[Any]:
        """The names of a role, row by row."""
        return self.names[role][self.codes[role]]


def read_coded(
    scan: Scan,
    workspace: Workspace,
    roles: Sequence[Role],
    given: Mapping[str, str] | None = None,
    *,
    row_bytes: int = LABEL_BYTES,
    available: int | None = None,
) -> CodedTable:
    """Read the columns of `roles`. Raises TableError, also for rows that do not fit into memory.

    `row_bytes` is what a row takes until the answer is there; `available` bytes of memory, what the machine has where
    it is not given.
    """
    columns = resolve(list(scan.columns), roles, given, scan.name)
    refuse_too_many(scan.name, scan.rows, available_bytes() if available is None else available, row_bytes)
    read = _load(scan, workspace, columns)
    if not read:
        raise TableError(f"{scan.name} has no rows", "expected one row per claim")
    names = {role: _names(workspace, role) for role in columns}
    optional = {role.name for role in roles if not role.required}
    joined = _joined(list(columns), optional)
    sizes = [len(found) for found in names.values()]
    if math.prod(size + 1 for size in sizes) < _SORTABLE:
        rows, distinct = _by_key(workspace, joined, list(columns), sizes, read)
    else:
        rows, distinct = _by_columns(workspace, joined, list(columns), read)
    if not rows:
        required = ", ".join(role for role in columns if role not in optional)
        raise TableError(f"none of the {read} rows of {scan.name} has all of {required}", "check the columns")
    found = dict(zip(columns, distinct, strict=True))
    if rows < read:
        found, names = _of_rows_left(found, names)
    return CodedTable(found, names, columns, read, read - rows, rows - len(distinct[0]))


def _of_rows_left(
    codes: dict[str, Codes], names: dict[str, NDArray[Any]]
) -> tuple[dict[str, Codes], dict[str, NDArray[Any]]]:
    """Without the names that only rows without a required entry had."""
    for role, column in codes.items():
        used = np.zeros(len(names[role]) + 1, dtype=bool)
        used[column] = True  # what is optional and missing is -1: the last
        used = used[:-1]
        if not used.all():
            place = np.append(np.cumsum(used) - 1, -1).astype(np.int32)
            codes, names = codes | {role: place[column]}, names | {role: names[role][used]}
    return codes, names


def _load(scan: Scan, workspace: Workspace, columns: Mapping[str, str]) -> int:
    """Copy the columns, as text, into the table `raw`: inputs can be read once, and names are needed before codes."""
    texts = [f"{as_text(c, scan.columns[c], scan.name)} AS {quoted(role)}" for role, c in columns.items()]
    source = scan.relation(list(dict.fromkeys(columns.values())))
    try:
        workspace.rows(f"CREATE TEMP TABLE raw AS SELECT {', '.join(texts)} FROM {source}")
    except TableError as error:
        raise unread(scan.name, error) from error
    return int(workspace.value("SELECT count(*) FROM raw"))


def as_text(column: str, kind: str, where: str) -> str:
    """SQL that gives a column as text: whole floats as integers, NULL for NaN."""
    name = quoted(column)
    if "[" in kind or kind.startswith(("STRUCT", "MAP", "UNION", "BLOB", "LIST")):
        raise TableError(f"column {column!r} of {where} holds {kind}, expected one name or number a row")
    if not kind.startswith(_FLOATS):
        return name if kind == "VARCHAR" else f"CAST({name} AS VARCHAR)"
    value = f"CAST({name} AS DOUBLE)"
    whole = f"{value} = trunc({value}) AND abs({value}) < 9007199254740992"
    return (
        f"CASE WHEN isnan({value}) THEN NULL WHEN {whole} THEN CAST(CAST({value} AS BIGINT) AS VARCHAR)"
        f" ELSE CAST({value} AS VARCHAR) END"
    )


def says_something(text: str) -> str:
    """SQL that tells whether a text is a name, and not one of the ways to write that there is none."""
    return f"trim({text}) NOT IN ({', '.join(map(literal, MISSING))})"


def _names(workspace: Workspace, role: str) -> NDArray[Any]:
    """Distinct names in order, also as the table `names_ROLE` with their codes."""
    column, table = quoted(role), quoted(f"names_{role}")
    workspace.rows(
        f"CREATE TEMP TABLE distinct_names AS SELECT name FROM (SELECT DISTINCT {column} AS name FROM raw)"
        f" WHERE {says_something('name')}"
    )
    every = f"bool_and(regexp_matches(name, {literal(_WHOLE)}))"
    whole = workspace.value(f"SELECT coalesce({every}, false) FROM distinct_names")
    order = "CAST(name AS BIGINT)" if whole else "name"
    workspace.rows(
        f"CREATE TEMP TABLE {table} AS SELECT name, CAST(row_number() OVER (ORDER BY {order}) - 1 AS INTEGER) AS code"
        " FROM distinct_names"
    )
    workspace.rows("DROP TABLE distinct_names")
    names = workspace.table(f"SELECT {order} AS name FROM {table} ORDER BY code")["name"].to_numpy()
    found: NDArray[Any] = names if whole else names.astype(object)
    return found


def _joined(roles: Sequence[str], optional: Collection[str]) -> str:
    """Rows beside their codes, after FROM; rows without a name for what is not optional fall out."""
    parts = ["raw"]
    for role in roles:
        kind, table = "LEFT JOIN" if role in optional else "JOIN", quoted(f"names_{role}")
        parts.append(f"{kind} {table} ON raw.{quoted(role)} = {table}.name")
    return " ".join(parts)


def _code(role: str) -> str:
    return f"coalesce({quoted(f'names_{role}')}.code, -1)"


def _filled(workspace: Workspace, query: str, arrays: Sequence[NDArray[Any]]) -> int:
    """Fill arrays with the columns of a query, batch by batch; returns how many rows there were."""
    done = 0
    for batch in workspace.batches(query):
        for filled, column in zip(arrays, batch.columns, strict=True):
            filled[done : done + batch.num_rows] = column.to_numpy()
        done += batch.num_rows
    return done


def _by_key(
    workspace: Workspace, joined: str, roles: Sequence[str], sizes: Sequence[int], read: int
) -> tuple[int, list[Codes]]:
    """The usual case: the codes of a row fit into one integer, and only that is ever held a row."""
    key = "CAST(0 AS BIGINT)"
    for role, size in zip(roles, sizes, strict=True):
        key = f"({key} * {size + 1} + {_code(role)} + 1)"
    keys = np.empty(read, dtype=np.int64)
    rows = _filled(workspace, f"SELECT {key} FROM {joined}", [keys])
    workspace.rows("DROP TABLE raw")
    return rows, split_keys(distinct_keys(keys[:rows]), sizes)


def distinct_keys(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted, each once; the array that was given is used up."""
    keys.sort()
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return keys if new.all() else keys[new]


def split_keys(keys: NDArray[np.int64], sizes: Sequence[int]) -> list[Codes]:
    """Codes again, of -1 to size - 1 each; the keys are used up."""
    found: list[Codes] = []
    for size in reversed(sizes):
        codes = np.empty(len(keys), dtype=np.int32)
        for start in range(0, len(keys), _BLOCK_ROWS):  # so that no array of 64-bit remainders is as long as the keys
            block = keys[start : start + _BLOCK_ROWS]
            codes[start : start + _BLOCK_ROWS] = block % (size + 1) - 1
            block //= size + 1
        found.append(codes)
    return found[::-1]


def _by_columns(workspace: Workspace, joined: str, roles: Sequence[str], read: int) -> tuple[int, list[Codes]]:
    """Codes that are together too large for one integer."""
    columns = [np.empty(read, dtype=np.int32) for _ in roles]
    rows = _filled(workspace, f"SELECT {', '.join(map(_code, roles))} FROM {joined}", columns)
    workspace.rows("DROP TABLE raw")
    return rows, distinct_rows([column[:rows] for column in columns])


def distinct_rows(columns: Sequence[Codes]) -> list[Codes]:
    """Distinct rows in order."""
    order = np.lexsort(columns[::-1])
    placed = [column[order] for column in columns]
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in placed], axis=0)
    return [column[new] for column in placed]
