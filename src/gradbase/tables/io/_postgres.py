"""A table or query of a PostgreSQL server, through ADBC: columns arrive as Arrow, never as Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from gradbase.common.errors import TableError
from gradbase.tables.io._choose import the_table
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._workspace import Workspace, quoted

_LISTING = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg_toast%' ORDER BY 1, 2
"""


def postgres_scan(address: str, workspace: Workspace, table: str | None, query: str | None) -> Scan:
    """A table, view or query of a server. Raises TableError; passwords are never told."""
    driver, shown = _driver(), _without_password(address)
    connection = _connect(driver, address, shown)
    workspace.closes(connection)
    try:
        where, name = _relation(connection, shown, table, query)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {where} LIMIT 0")
            names = [entry[0] for entry in cursor.description]
            cursor.execute(f"SELECT count(*) FROM {where}")
            rows = int(cursor.fetchone()[0])
    except driver.Error as error:
        raise TableError(f"{shown} refuses: {_first(error)}", "check the query") from error

    def relation(columns: Sequence[str]) -> str:
        texts = ", ".join(f"{quoted(column)}::text AS {quoted(column)}" for column in columns)
        cursor = connection.cursor()
        workspace.closes(cursor)
        try:
            cursor.execute(f"SELECT {texts} FROM {where}")
            return workspace.show(cursor.fetch_record_batch())
        except driver.Error as error:
            raise TableError(f"{shown} refuses: {_first(error)}") from error

    return Scan(name, dict.fromkeys(names, "VARCHAR"), rows, relation)


def _driver() -> Any:
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError as error:
        raise TableError(
            f"reading PostgreSQL needs {error.name}", "install it with: pip install 'gradbase[tables,postgres]'"
        ) from error
    return dbapi


def _connect(driver: Any, address: str, shown: str) -> Any:
    try:
        return driver.connect(address)
    except driver.Error as error:
        raise TableError(f"no connection to {shown}: {_first(error)}", "is the server running?") from error


def _relation(connection: Any, shown: str, table: str | None, query: str | None) -> tuple[str, str]:
    if query is not None:
        return f"({query.rstrip().rstrip(';')}) AS asked", f"the query on {shown}"
    with connection.cursor() as cursor:
        cursor.execute(_LISTING)
        found = [(str(schema), str(name)) for schema, name in cursor.fetchall()]
    schema, name = the_table(shown, found, table, default="public")
    return f"{quoted(schema)}.{quoted(name)}", f"table {name!r} of {shown}"


def _without_password(address: str) -> str:
    """The address as messages show it: where, but neither user, password nor parameters."""
    parts = urlsplit(address)
    place = parts.hostname or "localhost"
    return f"postgresql://{place}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _first(error: Exception) -> str:
    """The driver's message without its address, which may hold a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).split("postgresql://")[0]
