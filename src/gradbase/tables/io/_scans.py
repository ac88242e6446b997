"""Every kind of input as one thing: a Scan."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gradbase.common.errors import TableError
from gradbase.tables.io._choose import the_table
from gradbase.tables.io._csv import csv_scan
from gradbase.tables.io._postgres import postgres_scan
from gradbase.tables.io._scan import Scan, sql_scan
from gradbase.tables.io._sqlite import sqlite_scan
from gradbase.tables.io._workspace import Workspace, literal, modules, quoted

_SQLITE, _DUCKDB, _PARQUET = b"SQLite format 3\0", b"DUCK", b"PAR1"
_ENDINGS = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet", ".duckdb": "duckdb",
    ".ddb": "duckdb", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".db": "duckdb",
}  # fmt: skip
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0(\.\d+)?")  # by pandas: in Parquet; read from CSV, written again
READABLE = "CSV, TSV, Parquet, DuckDB or SQLite file, or postgresql://..."


def open_scan(source: Any, workspace: Workspace, *, table: str | None = None, query: str | None = None) -> Scan:
    """Look at a file, a PostgreSQL address, a DuckDB connection or relation, a frame, Arrow table or mapping.

    `table` or `query` say what to read of a database; a query on a file calls it `input`. Raises TableError.
    """
    if table is not None and query is not None:
        raise TableError("a table and a query were both given", "give one of them")
    if isinstance(source, (str, os.PathLike)):
        return _named(os.fspath(source), workspace, table, query)
    duckdb, _ = modules()
    if isinstance(source, duckdb.DuckDBPyConnection):
        return _connection_scan(source, workspace, table, query)
    if table is not None:
        raise TableError(f"table {table!r} was given with a {type(source).__name__}", "leave it out")
    if isinstance(source, duckdb.DuckDBPyRelation):
        return _queried(_relation_scan(source, workspace, "the relation"), workspace, query)
    return _queried(_arrow_scan(source, workspace), workspace, query)


def _named(name: str, workspace: Workspace, table: str | None, query: str | None) -> Scan:
    if name.startswith(("postgresql://", "postgres://")):
        return postgres_scan(name, workspace, table, query)
    if urlsplit(name).scheme not in ("", "file") and not Path(name).exists():
        raise TableError(f"{name!r} cannot be read", f"expected a {READABLE}")
    path = Path(name).expanduser()
    kind = _kind(path)
    if kind == "sqlite":
        return sqlite_scan(path, workspace, table, query)
    if kind == "duckdb":
        return _duckdb_scan(path, workspace, table, query)
    if table is not None:
        raise TableError(f"{path} is a {kind} file and has no tables to choose from", "leave the table out")
    scan = _parquet_scan(path, workspace) if kind == "parquet" else _with_index(csv_scan(path, workspace))
    return _queried(scan, workspace, query)


def _kind(path: Path) -> str:
    """By the first bytes, then by the ending: databases have no agreed ending."""
    head = _head(path)
    if head.startswith(_SQLITE):
        return "sqlite"
    if head[8:12] == _DUCKDB:
        return "duckdb"
    if head.startswith(_PARQUET):
        return "parquet"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    ending = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    kind = _ENDINGS.get(ending)
    if kind is None:
        raise TableError(f"{path} has an ending that says nothing ({ending!r})", f"expected a {READABLE}")
    if not head:
        raise TableError(f"{path} is empty", "expected a header and rows" if kind == "csv" else f"expected {kind}")
    if kind != "csv":
        raise TableError(f"{path} is not a {kind} file", "its first bytes are those of something else; is it cut off?")
    return kind


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except FileNotFoundError:
        raise TableError(f"there is no file {path}", "check the name") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}", f"expected a {READABLE}") from error


def _queried(scan: Scan, workspace: Workspace, query: str | None) -> Scan:
    """A query over a file or frame, which it calls `input`."""
    if query is None:
        return scan
    workspace.rows(f"CREATE TEMP VIEW input AS SELECT * FROM {scan.relation(list(scan.columns))}")
    try:
        return sql_scan(f"({query.rstrip().rstrip(';')})", f"the query on {scan.name}", workspace, scan.rows)
    except TableError as error:
        texts = "its columns are all text: item::int is a number" if set(scan.columns.values()) == {"VARCHAR"} else ""
        raise TableError(f"the query on {scan.name} fails: {error.problem}", *filter(None, [texts])) from error


def _parquet_scan(path: Path, workspace: Workspace) -> Scan:
    import pyarrow.parquet

    _, arrow = modules()
    try:
        rows = int(pyarrow.parquet.read_metadata(path).num_rows)
    except (arrow.ArrowException, OSError) as error:
        raise TableError(f"{path} is not a Parquet file that can be read", str(error).splitlines()[0]) from error
    return _with_index(sql_scan(f"read_parquet({literal(str(path))})", str(path), workspace, rows))


def _duckdb_scan(path: Path, workspace: Workspace, table: str | None, query: str | None) -> Scan:
    workspace.rows(f"ATTACH {literal(str(path))} AS source (READ_ONLY)")
    workspace.rows("USE source")
    if query is not None:
        relation = f"({query.rstrip().rstrip(';')})"
        return sql_scan(relation, f"the query on {path}", workspace, None)
    listing = "SELECT schema_name, {0}_name FROM duckdb_{0}s() WHERE database_name = 'source' AND NOT internal"
    found = workspace.rows(f"{listing.format('table')} UNION ALL {listing.format('view')} ORDER BY ALL")
    schema, name = the_table(str(path), [(str(s), str(n)) for s, n in found], table, default="main")
    relation = f"source.{quoted(schema)}.{quoted(name)}"
    rows = workspace.value(f"SELECT count(*) FROM {relation}")
    return sql_scan(relation, f"table {name!r} of {path}", workspace, rows)


def _connection_scan(connection: Any, workspace: Workspace, table: str | None, query: str | None) -> Scan:
    """On a cursor, so that the user's open results stay as they are."""
    duckdb, _ = modules()
    cursor = connection.cursor()
    workspace.closes(cursor)
    try:
        if query is None:
            listing = "SELECT table_schema, table_name FROM information_schema.tables ORDER BY ALL"
            found = [(str(schema), str(name)) for schema, name in cursor.execute(listing).fetchall()]
            schema, name = the_table("the connection", found, table, default="main")
            query, told = f"SELECT * FROM {quoted(schema)}.{quoted(name)}", f"table {name!r}"
        else:
            query, told = query.rstrip().rstrip(";"), "the query"
        rows = int(cursor.execute(f"SELECT count(*) FROM ({query})").fetchall()[0][0])
        scan = _relation_scan(cursor.sql(query), workspace, told)
    except duckdb.Error as error:
        raise TableError(f"the connection refuses: {str(error).splitlines()[0]}") from error
    return Scan(scan.name, scan.columns, rows, scan.relation)


def _relation_scan(relation: Any, workspace: Workspace, name: str) -> Scan:
    columns = {column: str(kind) for column, kind in zip(relation.columns, relation.types, strict=True)}

    def named(wanted: Sequence[str]) -> str:
        _, arrow = modules()
        chosen = relation.project(", ".join(map(quoted, wanted)))
        return workspace.show(arrow.RecordBatchReader.from_stream(chosen))

    return Scan(name, columns, None, named)


def _arrow_scan(source: Any, workspace: Workspace) -> Scan:
    duckdb, _ = modules()
    table = _plain(source, _as_arrow(source))
    try:
        shown = workspace.show(table)
    except duckdb.Error as error:
        raise TableError(f"the {type(source).__name__} is no table: {str(error).splitlines()[0]}") from error
    return _with_index(sql_scan(shown, f"the {type(source).__name__}", workspace, table.num_rows))


def _with_index(scan: Scan) -> Scan:
    """With the numbers of rows that pandas writes beside the columns of a frame told from these."""
    return replace(scan, index=[*scan.index, *filter(_INDEX.fullmatch, scan.columns)])


def _as_arrow(source: Any) -> Any:
    """An Arrow table of a frame, a table or a mapping of arrays. Raises TableError for anything else."""
    _, arrow = modules()
    try:
        if isinstance(source, arrow.Table):
            return source
        if type(source).__module__.split(".")[0] == "pandas":
            return arrow.table(_columns_of(source, source.items()))
        if hasattr(source, "__arrow_c_stream__"):
            return arrow.RecordBatchReader.from_stream(source).read_all()
        if isinstance(source, Mapping):
            return arrow.table(_columns_of(source, source.items()))
    except (arrow.ArrowException, ValueError, TypeError) as error:
        raise TableError(f"the {type(source).__name__} is no table: {str(error).splitlines()[0]}") from error
    raise TableError(
        f"a {type(source).__name__} cannot be read as a table",
        f"expected a {READABLE}, a DuckDB connection or relation, a frame, an Arrow table or a mapping of arrays",
    )


def _plain(source: Any, table: Any) -> Any:
    """With every name once, and numbers of half precision, which DuckDB does not know, in single."""
    _, arrow = modules()
    twice = next((name for name, count in Counter(table.column_names).items() if count > 1), None)
    if twice is not None:
        raise _two_columns(source, twice)
    for place, column in enumerate(table.schema):
        if arrow.types.is_float16(column.type):
            table = table.set_column(place, column.name, table.column(place).cast(arrow.float32()))
    return table


def _two_columns(source: Any, name: str) -> TableError:
    return TableError(f"the {type(source).__name__} has two columns {name!r}", "give one another name")


def _columns_of(source: Any, columns: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """By name, each once: a frame may have several of one name, and a mapping 1 beside "1"."""
    found: dict[str, Any] = {}
    for name, column in columns:
        if str(name) in found:
            raise _two_columns(source, str(name))
        found[str(name)] = _as_column(column)
    return found


def _as_column(column: Any) -> Any:
    """Columns of mixed types, such as ids that are partly numbers, and whole numbers of any length become text."""
    _, arrow = modules()
    try:
        return arrow.array(column, from_pandas=True)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError):
        return arrow.array([None if cell is None or cell != cell else str(cell) for cell in column])
