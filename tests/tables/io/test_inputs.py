"""One table in every form that is read: the same codes and names come out."""

from __future__ import annotations

import csv
import gzip
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import TableError
from gradbase.tables.io import (
    ITEM,
    LABEL,
    OBJECT,
    SOURCE,
    TIME,
    VALUE,
    WORKER,
    CodedTable,
    Workspace,
    open_scan,
    read_coded,
)
from gradbase.tables.io._coded import distinct_keys, distinct_rows, split_keys

ROLES = (ITEM, WORKER, LABEL)
NAMES = ("task", "Worker ID", "answer")
ROWS = [
    (10, "ann", "dog"),
    (2, "bob", "cat"),
    (2, "ann", 'a "quoted", one'),
    (2, "ann", 'a "quoted", one'),
    (3, None, "dog"),
    (3, "çelik", "two\nlines"),
    (10, "bob", ""),
]


def read(source: Any, roles: Any = ROLES, given: Any = None, **options: Any) -> CodedTable:
    with Workspace() as workspace:
        return read_coded(open_scan(source, workspace, **options), workspace, roles, given)


def as_rows(table: CodedTable) -> list[tuple[Any, ...]]:
    return list(zip(*(table.column(role).tolist() for role in table.codes), strict=True))


def _csv(folder: Path, name: str = "t.csv", delimiter: str = ",", end: str = "\n") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([NAMES, *ROWS])
    return path


def _gz(folder: Path) -> Path:
    path = folder / "t.csv.gz"
    path.write_bytes(gzip.compress(_csv(folder).read_bytes()))
    return path


def _bom(folder: Path) -> Path:
    path = _csv(folder)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return path


def _columns() -> dict[str, list[Any]]:
    return dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))


def _parquet(folder: Path) -> Path:
    pq.write_table(pa.table(_columns()), folder / "t.parquet")
    return folder / "t.parquet"


def _duckdb(folder: Path) -> Path:
    with duckdb.connect(str(folder / "t.db")) as connection:
        connection.register("rows", pa.table(_columns()))
        connection.execute("CREATE TABLE answers AS FROM rows")
    return folder / "t.db"


def _sqlite(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "t.db")) as connection:
        connection.execute('CREATE TABLE answers (task REAL, "Worker ID" TEXT, answer TEXT)')
        connection.executemany("INSERT INTO answers VALUES (?, ?, ?)", ROWS)
        connection.commit()
    return folder / "t.db"


_OPEN: list[Any] = []  # a relation does not keep its connection open in every version of DuckDB


def _connection(folder: Path) -> Any:
    _OPEN.append(duckdb.connect(str(_duckdb(folder))))
    return _OPEN[-1]


def _relation(folder: Path) -> Any:
    return _connection(folder).table("answers")


def _mapping(folder: Path) -> Any:
    columns = _columns()
    return columns | {"task": np.array(columns["task"], dtype=np.float64)}


FORMS: dict[str, Callable[[Path], Any]] = {
    "csv": _csv,
    "csv as text": lambda folder: str(_csv(folder)),
    "tab-separated": lambda folder: _csv(folder, "t.tsv", "\t"),
    "semicolons, CRLF": lambda folder: _csv(folder, end="\r\n", delimiter=";"),
    "csv.gz": _gz,
    "csv with a byte-order mark": _bom,
    "parquet": _parquet,
    "duckdb": _duckdb,
    "sqlite": _sqlite,
    "connection": _connection,
    "relation": _relation,
    "pandas": lambda folder: pd.DataFrame(_columns()),
    "arrow": lambda folder: pa.table(_columns()),
    "mapping": _mapping,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_the_same(form: str, tmp_path: Path) -> None:
    table = read(FORMS[form](tmp_path))
    quoted, lines = (2, "ann", 'a "quoted", one'), (3, "çelik", "two\nlines")
    assert as_rows(table) == [quoted, (2, "bob", "cat"), lines, (10, "ann", "dog")]
    assert table.columns == {"item": "task", "worker": "Worker ID", "label": "answer"}
    assert (table.rows_read, table.rows_missing, table.rows_repeated) == (7, 2, 1)
    assert table.names["item"].dtype == np.int64 and table.names["worker"].tolist() == ["ann", "bob", "çelik"]


def test_a_connection_keeps_its_own_open_result(tmp_path: Path) -> None:
    with _connection(tmp_path) as connection:
        pending = connection.execute("SELECT task FROM answers ORDER BY task")
        read(connection, table="answers")
        assert len(pending.fetchall()) == len(ROWS)


@pytest.mark.parametrize("form", ["csv", "parquet", "duckdb", "sqlite", "connection", "relation", "pandas", "arrow"])
def test_a_query_chooses_rows_and_names_columns(form: str, tmp_path: Path) -> None:
    table_name = "answers" if form in ("duckdb", "sqlite", "connection") else "input"
    query = f'SELECT task AS item, "Worker ID" AS worker, answer AS label FROM {table_name} WHERE answer = \'dog\';'
    table = read(FORMS[form](tmp_path), query=query)
    assert as_rows(table) == [(10, "ann", "dog")]


def test_ids_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "isbn.csv"
    path.write_text("item,worker,label\n007,1,1.0\n7,1,2\n")
    table = read(path)
    assert table.names["item"].tolist() == ["007", "7"]
    assert table.names["label"].tolist() == ["1.0", "2"]


def test_an_ending_of_id_needs_no_break(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("userid,TASKID,answer,valid\n1,2,x,y\n")
    assert read(path).columns == {"item": "TASKID", "worker": "userid", "label": "answer"}


def test_columns_of_mixed_types_become_text() -> None:
    frame = pd.DataFrame({"item": pd.Series([1, "a"], dtype=object), "worker": ["w", "v"], "label": [True, False]})
    assert as_rows(read(frame)) == [("1", "w", "true"), ("a", "v", "false")]


def test_whole_numbers_of_any_length_and_half_precision_are_read() -> None:
    import numpy as np

    table = read({"item": [10**40, 7], "worker": [1, 2], "label": np.array([0.5, 2.25], dtype=np.float16)})
    assert as_rows(table) == [(str(10**40), 1, "0.5"), ("7", 2, "2.25")]


def test_an_optional_column_may_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "claims.csv"
    path.write_text("object,source,value,ts\no,s,1,5\no,s2,1,null\n")
    table = read(path, (OBJECT, SOURCE, VALUE, TIME))
    assert table.codes["time"].tolist() == [0, -1] and table.names["time"].tolist() == [5]


def test_nothing_is_read_of_columns_that_are_not_asked_for(tmp_path: Path) -> None:
    frame = pa.table({"item": [1], "worker": [1], "label": [1], "more": [[1, 2]]})
    assert len(read(frame)) == 1


cell = st.one_of(st.none(), st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=4))


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=12), random=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_repetitions_change_nothing(rows: list[tuple[Any, ...]], random: Any) -> None:
    shuffled = [*rows, random.choice(rows)]
    random.shuffle(shuffled)
    tables = []
    for each in (rows, shuffled):
        columns = {role.name: pa.array([row[i] for row in each], pa.string()) for i, role in enumerate(ROLES)}
        try:
            tables.append(as_rows(read(pa.table(columns))))
        except TableError as error:
            assert "none of the" in error.problem
            tables.append([])
    assert tables[0] == tables[1]
    kept = {row for row in rows if not any(_says_nothing(entry) for entry in row)}
    assert {tuple(map(str, row)) for row in tables[0]} == kept


def _says_nothing(entry: str | None) -> bool:
    return entry is None or entry.strip(" ") in ("", "nan", "NaN", "null", "NULL")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 2_000_000_000), min_size=1, max_size=2), st.data())
def test_keys_and_columns_give_the_same_distinct_rows(sizes: list[int], data: Any) -> None:
    row = st.tuples(*(st.integers(-1, size - 1) for size in sizes))
    rows = data.draw(st.lists(row, min_size=1, max_size=20))
    columns = [np.array(column, dtype=np.int32) for column in zip(*rows, strict=True)]
    keys = np.zeros(len(rows), dtype=np.int64)
    for column, size in zip(columns, sizes, strict=True):
        keys = keys * (size + 1) + column + 1
    by_key, by_column = split_keys(distinct_keys(keys), sizes), distinct_rows(columns)
    assert [column.tolist() for column in by_key] == [column.tolist() for column in by_column]
    assert list(zip(*(column.tolist() for column in by_column), strict=True)) == sorted(set(rows))


def test_codes_that_fit_into_no_integer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(_csv(tmp_path))
    monkeypatch.setattr("gradbase.tables.io._coded._SORTABLE", 1)
    found = read(_csv(tmp_path))
    assert as_rows(found) == as_rows(expected)
    assert (found.rows_missing, found.rows_repeated) == (expected.rows_missing, expected.rows_repeated)
