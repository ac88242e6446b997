"""Sufficient statistics between two runs: named tables in one DuckDB file, to be looked at with SQL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradbase.common.errors import TableError
from gradbase.tables.io import Workspace, modules

STATE_ENDINGS = (".duckdb",)
_MAGIC = b"DUCK"  # within the first bytes of every DuckDB file
_KIND = "gradbase_state"  # the table that says of which operator the others are


def save_state(path: Path, operator: str, tables: Mapping[str, Any]) -> None:
    """Write Arrow tables as one DuckDB file. Raises OSError, duckdb.Error."""
    duckdb, _ = modules()
    path.unlink(missing_ok=True)  # DuckDB takes no empty file for a new database
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE {_KIND} AS SELECT '{operator}' AS operator, 1 AS version")
        for name, rows in tables.items():
            connection.register("rows_of_state", rows)
            connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM rows_of_state')
            connection.unregister("rows_of_state")


def load_state(source: Any, operator: str) -> dict[str, dict[str, Any]]:
    """Tables of arrays, of a file or of Arrow tables by name. Raises TableError."""
    if isinstance(source, Mapping):
        return {name: _arrays(rows) for name, rows in source.items()}
    path = Path(os.fspath(source)).expanduser()
    if not path.is_file():
        raise TableError(f"there is no state {path}", "name a file that an earlier run wrote")
    with Workspace() as workspace:
        try:
            workspace.rows(f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS source (READ_ONLY)")
            names = [str(row[0]) for row in workspace.rows(_TABLES)]
            said = workspace.value(f"SELECT operator FROM source.{_KIND}") if _KIND in names else None
        except TableError as error:
            told = "it is no DuckDB file" if _MAGIC not in _beginning(path) else error.problem
            raise TableError(f"{path} is not a state that can be read: {told}", "name a --state-out file") from error
        if said != operator:
            raise TableError(f"{path} is {f'a state of {said}' if said else 'no state'}", f"expected one of {operator}")
        tables = {name: workspace.table(f'SELECT * FROM source."{name}"') for name in names if name != _KIND}
    return {name: _arrays(rows) for name, rows in tables.items()}


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


_TABLES = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'source' ORDER BY 1"


def _arrays(rows: Any) -> dict[str, Any]:
    """Columns as numpy arrays; texts as objects."""
    found = {}
    for name in rows.column_names:
        column = rows[name]
        numeric = str(column.type).startswith(("int", "uint", "double", "float", "bool"))
        found[name] = column.to_numpy() if numeric else np.array(column.to_pylist(), dtype=object)
    return found
