"""An input that has been looked at, but not read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from gradbase.tables.io._workspace import Workspace, quoted


@dataclass(frozen=True)
class Scan:
    """An input that has been looked at, but not read.

    `name` is for messages, `columns` maps names to DuckDB types ("VARCHAR" where the reader makes text of them),
    `rows` is how many there are, or about how many (None: not known). `relation(columns)` is what to write after
    FROM for these columns; it may be read only once. `index` are columns that say where a row once was: they can be
    named, but are not among the `contents`.
    """

    name: str
    columns: Mapping[str, str]
    rows: int | None
    relation: Callable[[Sequence[str]], str]
    index: Collection[str] = ()

    @property
    def contents(self) -> list[str]:
        """What is said of the rows, where all of it counts."""
        return [name for name in self.columns if name not in self.index] or list(self.columns)


def sql_scan(relation: str, name: str, workspace: Workspace, rows: int | None) -> Scan:
    def named(columns: Sequence[str]) -> str:
        return f"(SELECT {', '.join(map(quoted, columns))} FROM {relation})"

    return Scan(name, workspace.describe(relation), rows, named)
