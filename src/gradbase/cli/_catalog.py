"""`gradbase catalog`: the user's SQL over measured statistics."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradbase.catalog import TABLES, Catalog, default_path
from gradbase.cli._console import Console
from gradbase.common.errors import UsageError

_WIDEST = 60  # characters of a cell in a table for people


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print a query's rows, the tables, or the path. Raises UsageError, CatalogError."""
    if arguments.csv and arguments.json:
        raise UsageError("--csv and --json exclude each other", "give one of them")
    path = _path(arguments.catalog)
    if arguments.path:
        _print_path(console, path)
        return 0
    with Catalog(path) as catalog:
        names, rows = _tables(catalog) if arguments.sql is None else catalog.query(arguments.sql)
    if arguments.json:
        for row in rows:
            console.json(dict(zip(names, row, strict=True)))
    else:
        widest = _WIDEST if arguments.sql is not None else None
        console.product(_csv(names, rows) if arguments.csv else aligned(names, rows, widest))
    return 0


def _path(named: Path | None) -> Path:
    """The file to read; one that was named has to be there, or a typing mistake would make an empty one."""
    if named is None:
        return default_path()
    if not named.expanduser().is_file():
        raise UsageError(f"there is no catalogue at {named}", "name the file that was given to train or explain")
    return named


def _print_path(console: Console, path: Path) -> None:
    if console.json_lines:
        console.json({"path": str(path)})
    else:
        console.product(str(path))


def _tables(catalog: Catalog) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Every column that a query may name."""
    names = ("table", "rows", "column", "type", "unit", "meaning")
    found = []
    for table in TABLES:
        count = catalog.query(f"SELECT count(*) FROM {table.name}")[1][0][0]
        found += [(table.name, count, each.name, each.type, each.unit, each.description) for each in table.columns]
    return names, found


def _csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([names, *rows])
    return text.getvalue()


def aligned(names: Sequence[str], rows: Sequence[Sequence[Any]], widest: int | None = None) -> str:
    """A table for people: numbers to the right, text to the left and cut after `widest` characters."""
    cells = [[_cell(value, widest) for value in row] for row in rows]
    columns = range(len(names))
    widths = [max(len(names[c]), *(len(row[c]) for row in cells)) if cells else len(names[c]) for c in columns]
    right = [all(isinstance(row[c], (int, float)) or row[c] is None for row in rows) and bool(rows) for c in columns]

    def line(texts: Sequence[str]) -> str:
        placed = (text.rjust(w) if r else text.ljust(w) for text, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(placed).rstrip()

    rule = "  ".join("-" * width for width in widths)
    count = f"({len(rows)} row{'' if len(rows) == 1 else 's'})"
    return "\n".join([line(names), rule, *map(line, cells), count])


def _cell(value: Any, widest: int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    return text if widest is None or len(text) <= widest else f"{text[: widest - 1]}…"
