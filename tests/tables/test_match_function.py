"""`gradbase.match` on tables, and the golden table it makes."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

import gradbase
from gradbase.common.errors import TableError
from gradbase.tables.match_tables import golden_table, table_names


def test_duplicates_of_one_table_whose_records_have_no_ids() -> None:
    connection = duckdb.connect()
    names = ["blue ridge grill", "blue ridge grill", "zum stein", "canoe", "horseradish grill", "la grotta"]
    found = gradbase.match({"name": names, "7": [1, 1, 2, 3, 4, 5]}, golden=True, into=connection)
    assert found.clusters["record"].to_pylist() == [str(row) for row in range(6)]
    golden = found.golden.to_pylist()
    assert sum(row["records"] for row in golden) == 6
    assert {row["name"] for row in golden} == set(names) and all(row["name_reason"] for row in golden)
    assert {row["7"] for row in golden} == {"1", "2", "3", "4", "5"}
    assert connection.sql("SELECT count(*) FROM match_golden").fetchall() == [(len(golden),)]


def test_records_of_one_table_that_agree_outvote_one_that_does_not() -> None:
    names = [f"{first} {second} inn" for first in ("blue", "old") for second in ("ridge", "harbour", "mill", "oak")]
    rows = [(name, phone) for k, name in enumerate(names) for phone in (5550100 + k, 5550100 + k, 5550900 - 7 * k)]
    pairs = [(3 * k + i, 3 * k + j, 1) for k in range(len(names)) for i, j in ((0, 1), (0, 2), (1, 2))]
    same = dict(zip(("left", "right", "label"), zip(*pairs, strict=True), strict=True))
    records = {"name": [name for name, _ in rows], "phone": [phone for _, phone in rows]}
    found = gradbase.match(records, labelled=same, golden=True)
    golden = {row["name"]: row for row in found.golden.to_pylist() if row["records"] == 3}
    assert len(golden) == len(names)
    assert {name: row["phone"] for name, row in golden.items()} == {
        name: str(5550100 + k) for k, name in enumerate(names)
    }
    assert all("a (2) says" in row["phone_reason"] for row in golden.values())


def test_a_golden_table_has_a_reason_for_every_cell() -> None:
    clusters = pa.table({"table": ["a", "b", "a"], "record": ["1", "2", "3"], "cluster": ["10", "10", "9"]})
    truths = pa.table({
        "object": [9, 10, 10, 10], "attribute": ["name", "name", "tags", "tags"], "value": ["x", "y", "t", "u"],
        "probability": [0.9, 0.8, 0.7, 0.6],
    })  # fmt: skip
    why = pa.table({
        "object": [10, 10, 10], "attribute": ["name"] * 3, "source": ["b", "a", None], "value": ["z", "y", None],
        "log_odds": [-0.5, 1.5, 9.0],
    })  # fmt: skip
    rows = golden_table(clusters, ["name", "tags"], truths, why).to_pylist()
    assert [(row["cluster"], row["records"], row["name"], row["tags"]) for row in rows] == [
        ("9", 1, "x", None), ("10", 2, "y", "t; u")
    ]  # fmt: skip
    assert rows[1]["name_reason"] == "a says 'y' (+1.50); b says 'z' (-0.50)" and rows[1]["name_probability"] == 0.8
    assert rows[1]["tags_probability"] == 0.6  # of several members the least sure


def test_tables_are_called_like_their_files() -> None:
    assert table_names("x/fodors.csv", "zagats.csv.gz") == ("fodors", "zagats")
    assert table_names("x/t.csv", "y/t.csv") == table_names({}, "y.csv") == ("a", "b")


@pytest.mark.parametrize("golden", [True, False])
def test_records_that_say_nothing_are_refused(golden: bool) -> None:
    with pytest.raises(TableError, match="table 'a' has no values to compare"):
        gradbase.match({"id": [1, 2, 3], "name": [None, "", "NaN"]}, golden=golden)
