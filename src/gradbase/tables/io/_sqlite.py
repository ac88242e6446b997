"""SQLite files, through the standard library: DuckDB's own scanner is fetched at run time, so it is not counted on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gradbase.common.errors import TableError
from gradbase.tables.io._choose import the_table
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._workspace import Workspace, modules, quoted

_FETCH_ROWS = 1 << 16


def sqlite_scan(path: Path, workspace: Workspace, table: str | None, query: str | None) -> Scan:
    """A table, view or query of a SQLite file. Raises TableError."""
    try:
        with closing(_sqlite(path)) as connection:
            where, name = _sqlite_relation(connection, path, table, query)
            names = [entry[0] for entry in connection.execute(f"SELECT * FROM {where} LIMIT 0").description]
            rows = int(connection.execute(f"SELECT count(*) FROM {where}").fetchone()[0])
    except sqlite3.Error as error:
        raise TableError(f"{path} cannot be read as SQLite: {error}", "check the query, or the file") from error
    except sqlite3.Warning as error:  # several statements in one
        raise TableError(f"the query on {path} is not one SELECT: {error}") from error

    def named(columns: Sequence[str]) -> str:
        return workspace.show(_text_reader(list(columns), _sqlite_rows(path, where, columns)))

    return Scan(name, dict.fromkeys(names, "VARCHAR"), rows, named)


def _sqlite(path: Path) -> sqlite3.Connection:
    """For reading only. DuckDB asks for rows from any of its threads, one at a time."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _sqlite_relation(
    connection: sqlite3.Connection, path: Path, table: str | None, query: str | None
) -> tuple[str, str]:
    if query is not None:
        return f"({query.rstrip().rstrip(';')})", f"the query on {path}"
    listing = "SELECT 'main', name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
    _, name = the_table(str(path), connection.execute(listing).fetchall(), table, default="main")
    return quoted(name), f"table {name!r} of {path}"


def _sqlite_rows(path: Path, where: str, columns: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows as text. A REAL that is whole is written as an integer, as everywhere."""
    texts = ", ".join(
        f"CASE WHEN typeof({c}) = 'real' AND {c} = CAST({c} AS INTEGER) THEN CAST(CAST({c} AS INTEGER) AS TEXT)"
        f" ELSE CAST({c} AS TEXT) END"
        for c in map(quoted, columns)
    )
    try:
        with closing(_sqlite(path)) as connection:
            cursor = connection.execute(f"SELECT {texts} FROM {where}")
            while rows := cursor.fetchmany(_FETCH_ROWS):
                yield rows
    except sqlite3.Error as error:
        raise TableError(f"{path} cannot be read as SQLite: {error}") from error


def _text_reader(columns: Sequence[str], chunks: Iterator[list[tuple[Any, ...]]]) -> Any:
    _, arrow = modules()
    schema = arrow.schema([(name, arrow.string()) for name in columns])

    def batches() -> Iterator[Any]:
        for rows in chunks:
            yield arrow.RecordBatch.from_arrays(
                [arrow.array(c, arrow.string()) for c in zip(*rows, strict=True)], schema=schema
            )

    return arrow.RecordBatchReader.from_batches(schema, batches())
