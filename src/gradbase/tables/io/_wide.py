"""Tables of which all columns count: records, features, hierarchies, labelled pairs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import TableError
from gradbase.tables.io._coded import as_text, says_something
from gradbase.tables.io._columns import ITEM, Role, resolve
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._workspace import Workspace, quoted, unread

Floats = NDArray[np.float32]


def read_texts(scan: Scan, workspace: Workspace, columns: Sequence[str] | None = None) -> dict[str, list[str | None]]:
    """Columns (by default all contents) as texts, None for what is missing, in the input's order. Raises TableError."""
    wanted = scan.contents if columns is None else list(columns)
    texts = []
    for name in wanted:
        text = as_text(name, scan.columns[name], scan.name)
        texts.append(f"CASE WHEN {says_something(text)} THEN {text} END AS {quoted(name)}")
    try:
        workspace.rows("SET preserve_insertion_order = true")
        rows = workspace.table(f"SELECT {', '.join(texts)} FROM {scan.relation(wanted)}")
    except TableError as error:
        raise unread(scan.name, error) from error
    return {name: rows[name].to_pylist() for name in wanted}


def read_roles(
    scan: Scan, workspace: Workspace, roles: Sequence[Role], given: Mapping[str, str] | None = None
) -> dict[str, list[str | None]]:
    """Only the columns of `roles`, by role. Raises TableError."""
    columns = resolve(list(scan.columns), roles, given, scan.name)
    read = read_texts(scan, workspace, list(dict.fromkeys(columns.values())))
    return {role: read[column] for role, column in columns.items()}


@dataclass(frozen=True)
class FeatureTable:
    """What is known of items: `items` are their names as texts, one row each.

    `numeric` float32[n, d] (NaN: not known) with `numeric_names`; `text` maps a column to n texts ("": not known);
    `embedding` float32[n, e].
    """

    items: list[str]
    numeric: Floats | None = None
    numeric_names: tuple[str, ...] = ()
    text: Mapping[str, list[str]] = field(default_factory=dict)
    embedding: Floats | None = None


def read_features(scan: Scan, workspace: Workspace, given: Mapping[str, str] | None = None) -> FeatureTable:
    """A column of items and columns of features: those that hold only numbers are numeric, lists of numbers are
    embeddings, the others text. Raises TableError, also for an item that comes twice."""
    item = resolve(list(scan.columns), (ITEM,), given, scan.name)["item"]
    beside = [name for name in scan.contents if name != item]
    lists = [name for name in beside if "[" in scan.columns[name]]
    plain = [item, *(name for name in beside if name not in lists)]
    if not beside:
        raise TableError(f"{scan.name} has no columns beside {item!r}", "expected features of the items")
    held = f"(SELECT * FROM {workspace.hold(scan.relation([*plain, *lists]), scan.name)})"
    texts = read_texts(Scan(scan.name, scan.columns, scan.rows, lambda _: held), workspace, plain)
    items = _items(texts.pop(item), scan.name)
    numeric = {name: numbers for name, column in texts.items() if (numbers := _numbers(column)) is not None}
    return FeatureTable(
        items=items,
        numeric=np.stack(list(numeric.values()), axis=1) if numeric else None,
        numeric_names=tuple(numeric),
        text={name: [cell or "" for cell in column] for name, column in texts.items() if name not in numeric},
        embedding=_embedding(workspace, held, lists, scan.name) if lists else None,
    )


def read_matrix(path: str | os.PathLike[str], items: Sequence[str | None] | None) -> FeatureTable:
    """A .npy matrix, one row an item; without `items` they are called 0, 1, 2, ... Raises TableError."""
    try:
        matrix = np.load(Path(path).expanduser(), allow_pickle=False)
    except FileNotFoundError:
        raise TableError(f"there is no file {path}", "check the name") from None
    except (OSError, ValueError, EOFError) as error:
        raise TableError(f"{path} is not a .npy matrix that can be read: {str(error).splitlines()[0]}") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise TableError(
            f"{path} holds {getattr(matrix, 'dtype', '?')}{list(getattr(matrix, 'shape', []))}",
            "expected a matrix of numbers with a row per item",
        )
    names = [str(row) for row in range(len(matrix))] if items is None else _items(items, "the list of items")
    if len(names) != len(matrix):
        raise TableError(f"{path} has {len(matrix)} rows and {len(names)} items are named", "expected one row an item")
    if not np.isfinite(matrix).all():
        raise TableError(f"{path} has entries that are NaN or infinite", "replace them by numbers")
    return FeatureTable(items=names, embedding=np.ascontiguousarray(matrix, dtype=np.float32))


def _items(column: Sequence[str | None], where: str) -> list[str]:
    missing = sum(name is None for name in column)
    if missing:
        raise TableError(f"{missing} rows of {where} name no item", "every row of features needs one")
    names = [str(name) for name in column]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise TableError(f"item {twice!r} is in {where} twice", "expected one row an item")
    if not names:
        raise TableError(f"{where} has no rows", "expected one row an item")
    return names


def _numbers(column: Sequence[str | None]) -> Floats | None:
    """The column as numbers, or None if a text is none, or all is missing."""
    if all(cell is None for cell in column):
        return None
    try:
        return np.array([np.nan if cell is None else float(cell) for cell in column], dtype=np.float32)
    except ValueError:
        return None


def _embedding(workspace: Workspace, held: str, lists: Sequence[str], where: str) -> Floats:
    rows = workspace.table(f"SELECT {', '.join(map(quoted, lists))} FROM {held}")
    try:
        parts = [np.array(rows[name].to_pylist(), dtype=np.float32) for name in lists]
        matrix = np.concatenate(parts, axis=1)
    except (ValueError, TypeError) as error:
        raise TableError(f"lists in {where} are no vectors of one length", "expected numbers") from error
    if not np.isfinite(matrix).all():
        raise TableError(f"lists in {where} have entries that are missing, NaN or infinite", "replace them by numbers")
    return matrix
