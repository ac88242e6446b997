"""What is wrong with an input is told on one line, with what was found and what to do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradbase.common.errors import TableError
from gradbase.tables.io import ITEM, LABEL, WORKER, Workspace, available_bytes, needed_bytes, open_scan, read_coded
from gradbase.tables.io._machine import refuse_too_many
from tests.tables.io.test_inputs import read

HEADER = "item,worker,label\n"


def refused(source: Any, given: Any = None, **options: Any) -> str:
    with pytest.raises(TableError) as caught:
        read(source, given=given, **options)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("[table] ")
    return text


def write(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("\n\n", "has no header line"),
        (HEADER, "has no rows; expected one row per claim"),
        (HEADER + "1,w,\n2,,a\n,w,a\n", "none of the 3 rows"),
        (HEADER + "1,w,NaN\n2,w, \n", "none of the 2 rows"),
        (HEADER + "1,w,a\n2,w\n", "Expected 3 columns, got 2: 2,w"),
        (HEADER + "1,w,a\n" * 9 + "2,w,a,b\n", "Expected 3 columns, got 4"),
        (b"item,worker,label\n1,w,\xff\xfe\n", "is not UTF-8 text in line 2"),
        (HEADER.encode() + b"1,w,a\n" * 400_000 + b"1,w,\xff\n", "invalid UTF8 data"),
        (bytes(range(128)), "has no header line"),
        ("item,item,label\n1,w,a\n", "two columns called 'item'"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_damaged_csv(content: str | bytes, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    text = refused(path)
    assert told in text and text.count(str(path)) == 1


@pytest.mark.parametrize("name", ["t.parquet", "t.duckdb", "t.sqlite", "t.db"])
@pytest.mark.parametrize("content", [b"", b"not what it says, by far", b"\0" * 4096])
def test_files_that_are_not_what_their_ending_says(name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, content, name)
    text = refused(path)
    assert str(path) in text and ("is empty" in text or "first bytes are those of something else" in text)


def test_files_cut_off(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": range(9999)}), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    assert "not a Parquet file that can be read" in refused(write(tmp_path, whole[: len(whole) // 2], "half.parquet"))
    with closing(sqlite3.connect(tmp_path / "t.sqlite")) as connection:
        connection.execute("CREATE TABLE t (item, worker, label)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, i, "a" * 50) for i in range(999)])
        connection.commit()
    whole = (tmp_path / "t.sqlite").read_bytes()
    assert "malformed" in refused(write(tmp_path, whole[: len(whole) // 2], "half.sqlite"))
    with duckdb.connect(str(tmp_path / "t.duckdb")) as connection:
        connection.execute("CREATE TABLE t AS SELECT i AS item, i AS worker, i AS label FROM range(99999) t(i)")
    whole = (tmp_path / "t.duckdb").read_bytes()
    assert "half.duckdb" in refused(write(tmp_path, whole[:5000], "half.duckdb"))
    packed = write(tmp_path, b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "t.csv.gz")
    assert "cannot be unpacked" in refused(packed)


def test_missing_columns_say_what_was_found_and_perhaps_meant(tmp_path: Path) -> None:
    text = refused(write(tmp_path, "item,wroker,label\n1,2,3\n"))
    assert "no column for worker, did you mean 'wroker'?" in text and "found 'item', 'wroker', 'label'" in text
    text = refused(write(tmp_path, "task,question,worker,label\n1,2,3,4\n"))
    assert "several columns for item: 'task', 'question'" in text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"item": "qid"}, "has no column 'qid', did you mean 'qids'?"),
        ({"itme": "qids"}, "'itme' is not a column that is asked for here, did you mean 'item'?"),
    ],
)
def test_columns_given_wrongly(given: dict[str, str], told: str, tmp_path: Path) -> None:
    assert told in refused(write(tmp_path, "qids,worker,label\n1,2,3\n"), given)


def test_columns_given(tmp_path: Path) -> None:
    table = read(write(tmp_path, "qids,worker,label\n1,2,3\n"), given={"item": "qids"})
    assert table.columns["item"] == "qids"


def test_which_table(tmp_path: Path) -> None:
    path = tmp_path / "t.duckdb"
    with duckdb.connect(str(path)) as connection:
        for name in ("labels", "golds"):
            connection.execute(f"CREATE TABLE {name} AS SELECT 1 AS item, 2 AS worker, 3 AS label")
    assert "has 2 tables; choose one with table NAME, or give a query: golds, labels" in refused(path)
    assert "no table 'lables', did you mean 'labels'?" in refused(path, table="lables")
    assert len(read(path, table="labels")) == 1
    assert "both given" in refused(path, table="labels", query="SELECT 1")
    assert "the connection refuses" in refused(duckdb.connect(), query="SELEC 1")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (3, "a int cannot be read as a table; expected a CSV, TSV, Parquet, DuckDB or SQLite file"),
        ([1, 2], "a list cannot be read as a table; expected a CSV, TSV, Parquet, DuckDB or SQLite file"),
        ({"item": [1], "worker": [1, 2], "label": [1]}, "expected length 1 but got length 2"),
        ("nothing.xlsx", "there is no file nothing.xlsx"),
        ("nothing.csv", "there is no file nothing.csv"),
        (__file__, "has an ending that says nothing ('.py'); expected a CSV"),
    ],
)
def test_what_is_no_table(source: Any, told: str) -> None:
    assert told in refused(source)


def test_wrong_types_and_queries(tmp_path: Path) -> None:
    text = refused(pa.table({"item": [[1]], "worker": [1], "label": [1]}))
    assert "column 'item' of the Table holds BIGINT[], expected one name or number a row" in text
    path = write(tmp_path, HEADER + "1,w,a\n")
    assert "Referenced column" in refused(path, query="SELECT nothing FROM input")
    assert "is a csv file and has no tables" in refused(path, table="labels")
    assert "there is no file" in refused(tmp_path / "nothing.csv")
    assert "cannot be read" in refused(tmp_path)  # a folder


def test_a_billion_rows_on_a_small_machine(tmp_path: Path) -> None:
    """Rows are estimated by what a line takes, so nothing is read: the file is sparse."""
    path = write(tmp_path, HEADER + "item1,worker1,label1\n" * 60_000)
    with path.open("r+b") as file:
        file.truncate(21 * 10**9)
    with Workspace() as workspace:
        scan = open_scan(path, workspace)
        assert scan.rows == pytest.approx(1e9, rel=0.01)
        with pytest.raises(TableError, match=r"rows, which need 93.5. GiB .* 8.00 GiB are free; about 81"):
            read_coded(scan, workspace, (ITEM, WORKER, LABEL), available=8 * 2**30)


def test_a_parquet_file_says_how_many_rows_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": range(1000), "worker": range(1000), "label": range(1000)}), tmp_path / "t.parquet")
    with Workspace() as workspace:
        scan = open_scan(tmp_path / "t.parquet", workspace)
        with pytest.raises(TableError, match="about 1,000 rows"):
            read_coded(scan, workspace, (ITEM, WORKER, LABEL), available=needed_bytes(1000) - 1)
        assert len(read_coded(scan, workspace, (ITEM, WORKER, LABEL), available=needed_bytes(1000))) == 1000


def test_what_is_free_is_the_least_of_machine_and_cgroup(tmp_path: Path) -> None:
    meminfo = write(tmp_path, "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n", "meminfo")
    assert available_bytes(meminfo, tmp_path) == 4_096_000
    write(tmp_path, "3000000", "memory.max")
    write(tmp_path, "1000000", "memory.current")
    assert available_bytes(meminfo, tmp_path) == 2_000_000
    write(tmp_path, "max", "memory.max")
    assert available_bytes(meminfo, tmp_path) == 4_096_000
    assert available_bytes(tmp_path / "none", tmp_path / "none") is None
    refuse_too_many("t", None, 5)
    refuse_too_many("t", 10**12, None)


def test_two_columns_of_one_name_are_refused() -> None:
    import pandas as pd

    names = ["item", "item", "worker", "label"]
    assert refused(pd.DataFrame([[1, 2, 3, 4]], columns=names)).startswith(
        "[table] the DataFrame has two columns 'item'; give"
    )
    assert "the Table has two columns 'item'" in refused(pa.Table.from_arrays([pa.array([1])] * 4, names=names))
    assert "the dict has two columns '1'" in refused({"item": [1], "worker": [2], "label": [3], 1: [4], "1": [5]})


def test_a_type_that_is_not_known_is_told() -> None:
    wide = pa.array([1], pa.decimal256(50, 3))
    assert "the Table is no table: " in refused(pa.table({"item": [1], "worker": [2], "label": wide}))
