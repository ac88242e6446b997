"""Results become files: all of them or none, and never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradbase.common.errors import TableError
from gradbase.tables.io._workspace import modules

TABLE_ENDINGS = (".parquet", ".csv")


class Outputs:
    """The files of one command. They are checked when they are named, before anything slow; written under other
    names; and renamed together by `commit`.

    `wanted` maps what a file is for ("out", "why-out", ...) to its path; None is not wanted. Raises TableError for
    endings that are not known, folders that are not there or not writable, a path named twice or among `inputs`.
    """

    def __init__(
        self,
        wanted: Mapping[str, str | os.PathLike[str] | None],
        inputs: Sequence[Any] = (),
        endings: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._paths = {name: Path(path).expanduser() for name, path in wanted.items() if path is not None}
        self._written: dict[str, Path] = {}
        read = {_real(Path(path)) for path in inputs if isinstance(path, (str, os.PathLike)) and Path(path).exists()}
        for name, path in self._paths.items():
            _check_ending(name, path, (endings or {}).get(name, TABLE_ENDINGS))
            _check_place(name, path)
            if _real(path) in read:
                raise TableError(f"{name} {path} is also read", "choose a name that is no input")
        self._refuse_repeated()

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        for left in self._written.values():
            with contextlib.suppress(OSError):
                left.unlink()

    def table(self, name: str, rows: Any) -> None:
        """Write an Arrow table beside its place, if this output is wanted. Raises TableError."""
        self.file(name, lambda path: _write_table(rows, path, self._paths[name].suffix.lower()))

    def text(self, name: str, text: str) -> None:
        """Write a page, if it is wanted. Raises TableError."""
        self.file(name, lambda path: path.write_text(text, "utf-8"))

    def file(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let `write` make a file beside its place, if it is wanted. Raises TableError."""
        if name in self._paths:
            self._write(name, write)

    def commit(self) -> dict[str, Path]:
        """Put everything that was written into its place; returns where."""
        for name in list(self._written):
            path = self._paths[name]
            try:
                os.replace(self._written[name], path)
            except OSError as error:
                raise TableError(f"{name} {path} cannot be written: {error.strerror}") from error
            del self._written[name]
        return dict(self._paths)

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        path = self._paths[name]
        try:
            handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.close(handle)
            self._written[name] = Path(beside)
            write(Path(beside))
            os.chmod(beside, _mode(path))
        except OSError as error:
            raise TableError(f"{name} {path} cannot be written: {error.strerror or error}") from error

    def _refuse_repeated(self) -> None:
        names: dict[Path, str] = {}
        for name, path in self._paths.items():
            other = names.setdefault(_real(path), name)
            if other != name:
                raise TableError(f"{other} and {name} are both {path}", "give each a name of its own")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _check_ending(name: str, path: Path, endings: tuple[str, ...]) -> None:
    if path.suffix.lower() not in endings:
        raise TableError(f"{name} {path} does not say what to write", f"expected an ending of {' or '.join(endings)}")


def _check_place(name: str, path: Path) -> None:
    if path.is_dir():
        raise TableError(f"{name} {path} is a folder", "expected a file")
    if not path.parent.is_dir():
        raise TableError(f"{name} {path} cannot be written: there is no folder {path.parent}", "make it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise TableError(f"{name} {path} cannot be written: permission denied", "choose another place")


def _mode(path: Path) -> int:
    """As the file was, or as `open` would have made it."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _write_table(rows: Any, path: Path, ending: str) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    if ending == ".parquet":
        pyarrow.parquet.write_table(rows, path)
    else:
        pyarrow.csv.write_csv(_flat(rows), path)


def _flat(rows: Any) -> Any:
    """CSV knows no lists: a nested column is written as JSON."""
    _, arrow = modules()
    for at, field in enumerate(rows.schema):
        if arrow.types.is_nested(field.type):
            cells = [None if cell is None else json.dumps(cell) for cell in rows.column(at).to_pylist()]
            rows = rows.set_column(at, field.name, arrow.array(cells, arrow.string()))
    return rows
