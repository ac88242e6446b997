"""A user's SQL over the catalogue, which can read and nothing else."""

from __future__ import annotations

import contextlib
import difflib
import re
import sqlite3
from pathlib import Path
from typing import Any

from gradbase.catalog._database import BUSY_TIMEOUT_S, is_environment
from gradbase.catalog._tables import TABLES
from gradbase.common.errors import UsageError

QueryResult = tuple[tuple[str, ...], list[tuple[Any, ...]]]

# A read-only connection cannot write the catalogue, but these could reach other files or lift the restriction.
_REFUSED = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA})
_READ_ONLY = "readonly database"
_UNKNOWN_NAME = re.compile(r"no such (?:table|column): (?:\w+\.)?(\w+)")


def run_query(path: Path, sql: str) -> QueryResult:
    """Column names and rows of one SELECT, on a connection of its own that SQLite holds to reading.

    Raises UsageError with SQLite's words for what is wrong with `sql`; lets errors pass that are not its fault.
    """
    refused: list[int] = []

    def authorize(action: int, argument: str | None, *_: str | None) -> int:
        if action not in _REFUSED or (action == sqlite3.SQLITE_PRAGMA and argument == "table_info"):
            return sqlite3.SQLITE_OK
        refused.append(action)
        return sqlite3.SQLITE_DENY

    uri = f"{path.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as reader:
        reader.execute("PRAGMA query_only = ON")  # temporary tables neither
        reader.set_authorizer(authorize)
        try:
            return _fetch(reader, sql)
        except UnicodeDecodeError:
            raise  # out of a spoiled file; the other ValueErrors are of the query's own text
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            if refused or _READ_ONLY in str(error):
                raise UsageError("a query may only read the catalogue", "expected one SELECT", *_tables()) from error
            if isinstance(error, sqlite3.Error) and (is_environment(error) or type(error) is sqlite3.DatabaseError):
                raise
            raise UsageError(f"the query failed: {error}", *_near_miss(str(error)), *_tables()) from error


def _fetch(reader: sqlite3.Connection, sql: str) -> QueryResult:
    cursor = reader.execute(sql)
    if cursor.description is None:
        raise sqlite3.OperationalError("there is no statement in it")
    return tuple(column[0] for column in cursor.description), cursor.fetchall()


def _near_miss(message: str) -> list[str]:
    unknown = _UNKNOWN_NAME.search(message)
    names = {table.name for table in TABLES}.union(*(table.column_names for table in TABLES))
    close = difflib.get_close_matches(unknown.group(1), sorted(names), n=1) if unknown else []
    return [f"did you mean {name}?" for name in close]


def _tables() -> list[str]:
    return [f"{table.name}({', '.join(table.column_names)})" for table in TABLES]
