"""CSV: the header and delimiter are read here, so that a damaged row is an error with its number, never a guess."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

from gradbase.common.errors import TableError
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._workspace import Workspace, told

_SAMPLE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_DELIMITERS = ",\t;|"
_GZIP = b"\x1f\x8b"
_GZIP_RATIO = 5  # of names and labels, about; only an estimate of rows is made of it


def csv_scan(path: Path, workspace: Workspace) -> Scan:
    """A file of delimited text with a header, in UTF-8, also packed with gzip. Raises TableError."""
    sample = _sample(path)
    columns, delimiter, nameless = _header(path, sample)

    def relation(wanted: Sequence[str]) -> str:
        return workspace.show(_reader(path, columns, delimiter, wanted))

    index = columns[:1] if nameless else []
    return Scan(str(path), dict.fromkeys(columns, "VARCHAR"), _rows(path, sample), relation, index)


def _reader(path: Path, columns: Sequence[str], delimiter: str, wanted: Sequence[str]) -> object:
    """A stream of text columns; fields may hold delimiters, quotes and line ends between quotes."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    types = dict.fromkeys(columns, pyarrow.string())
    read = {"use_threads": False, "block_size": _BLOCK_BYTES, "column_names": list(columns), "skip_rows": 1}
    try:
        return arrow_csv.open_csv(
            pyarrow.input_stream(str(path), compression="gzip" if _packed(path) else None),
            read_options=arrow_csv.ReadOptions(**read),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=types, include_columns=list(wanted)),
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(f"{path} cannot be read: {told(error)}") from error


def _packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _sample(path: Path) -> str:
    try:
        with gzip.open(path) if _packed(path) else path.open("rb") as file:
            data = file.read(_SAMPLE_BYTES)
    except (OSError, EOFError) as error:
        raise TableError(f"{path} cannot be unpacked: {error}", "is it cut off?") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) == _SAMPLE_BYTES and error.start > len(data) - 4:  # the sample ends within a character
            return data[: error.start].decode("utf-8-sig")
        line = data[: error.start].count(b"\n") + 1
        raise TableError(f"{path} is not UTF-8 text in line {line}", "save it as CSV in UTF-8") from error


def _header(path: Path, sample: str) -> tuple[list[str], str, bool]:
    """Names of the columns, the delimiter, and whether the first has no name: it is a frame's index."""
    first = sample.splitlines()[0] if sample.strip() else ""
    if not first.strip() or "\0" in first:
        raise TableError(f"{path} has no header line", "expected names of columns in the first line")
    delimiter = max(_DELIMITERS, key=first.count)
    columns = [name.strip() for name in next(csv.reader(io.StringIO(first), delimiter=delimiter))]
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise TableError(f"{path} has two columns called {repeated[0]!r}", "rename one")
    named = [name or f"column_{number}" for number, name in enumerate(columns, start=1)]
    return named, delimiter, not columns[0]


def _rows(path: Path, sample: str) -> int:
    """How many rows, about: counted if the sample is all, else by the bytes of a line."""
    lines, nbytes = max(sample.count("\n"), 1), len(sample.encode())
    if nbytes < _SAMPLE_BYTES - 4:
        return lines - 1
    return int(path.stat().st_size * (_GZIP_RATIO if _packed(path) else 1) / (nbytes / lines))
