"""A private DuckDB: it reads every input, never fetches an extension, and spills into a folder that goes with it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from gradbase.common.errors import TableError
from gradbase.common.malloc import release_freed_memory

_MEMORY_BYTES = 256 * 2**20  # more is spilled to disk, so that reading takes no more than the model does


def modules() -> tuple[Any, Any]:
    """duckdb and pyarrow. Raises TableError that names the command which installs them."""
    try:
        import duckdb
        import pyarrow
    except ImportError as error:
        raise TableError(
            f"reading and writing tables needs {error.name}", "install it with: pip install 'gradbase[tables]'"
        ) from error
    return duckdb, pyarrow


class Workspace:
    """An in-memory database for one call; closes, and deletes what it spilled, at the end of its `with`."""

    def __init__(self, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._duckdb, self._arrow = modules()
        self._folder = tempfile.TemporaryDirectory(prefix="gradbase-")
        self._connection = self._duckdb.connect(
            config={
                "memory_limit": f"{memory_bytes // 2**20}MiB",
                "temp_directory": self._folder.name,
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
        )
        self._held: list[Any] = []
        self._closing = ExitStack()
        self._names = 0

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._closing.close()
        self._connection.close()
        self._folder.cleanup()
        self._arrow.default_memory_pool().release_unused()
        release_freed_memory()  # of the small blocks of names; what is read next would be put beside them

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement. Raises TableError with DuckDB's first lines."""
        try:
            found: list[tuple[Any, ...]] = self._connection.execute(sql, list(parameters)).fetchall()
        except self._duckdb.Error as error:
            raise TableError(told(error)) from error
        return found

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The one value of a statement of one row."""
        return self.rows(sql, parameters)[0][0]

    def batches(self, sql: str) -> Any:
        """The rows of a query as a pyarrow.RecordBatchReader. Raises TableError."""
        try:
            relation = self._connection.sql(sql)
            return self._arrow.RecordBatchReader.from_stream(relation)
        except self._duckdb.Error as error:
            raise TableError(told(error)) from error

    def table(self, sql: str) -> Any:
        """The rows of a query as a pyarrow.Table. Raises TableError."""
        try:
            return self.batches(sql).read_all()
        except (self._duckdb.Error, self._arrow.ArrowException) as error:
            raise TableError(told(error)) from error

    def show(self, rows: Any) -> str:
        """Let SQL see an Arrow table, a reader or a frame; returns the name to use."""
        self._names += 1
        name = f"shown_{self._names}"
        self._held.append(rows)  # DuckDB keeps no reference of its own
        self._connection.register(name, rows)
        return name

    def hold(self, relation: str, name: str) -> str:
        """Copy what can be read only once; returns the name to use. Raises TableError."""
        self._names += 1
        try:
            self.rows(f"CREATE TEMP TABLE held_{self._names} AS SELECT * FROM {relation}")
        except TableError as error:
            raise unread(name, error) from error
        return f"held_{self._names}"

    def closes(self, resource: Any) -> None:
        """Close this when the workspace closes; the last first."""
        self._closing.callback(resource.close)

    def describe(self, relation: str) -> dict[str, str]:
        """Names and DuckDB types of the columns of a relation."""
        return {row[0]: str(row[1]) for row in self.rows(f"DESCRIBE SELECT * FROM {relation}")}


def quoted(name: str) -> str:
    """An identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string constant."""
    return "'" + text.replace("'", "''") + "'"


def unread(name: str, error: TableError) -> TableError:
    """The error about an input that cannot be read; who read it may have named it already."""
    start = f"{name} cannot be read: "
    return TableError(start + error.problem.removeprefix(start), *error.remedies)


def told(error: Exception) -> str:
    """What DuckDB or Arrow says on one line: without advice on options that cannot be given here."""
    damaged = re.search(r"CSV (?:parse|conversion) error.*?: (.*)|\[table\] (.*)", str(error))
    if damaged:
        return re.sub(r"\.? Detail: Python exception.*", "", damaged.group(1) or damaged.group(2)).strip()
    lines: list[str] = []
    for line in str(error).splitlines():
        if re.match(r"\s*(Possible|LINE \d|\^|file =|Candidate)", line):
            break
        if line.strip():
            lines.append(line.strip())
    return re.sub(r"^[A-Z][A-Za-z /-]* Error: ", "", ". ".join(lines[:3]))
