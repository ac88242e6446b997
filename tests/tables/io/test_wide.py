"""Features and records: tables of which every column counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradbase.common.errors import TableError
from gradbase.tables.io import FeatureTable, Workspace, open_scan, read_features, read_matrix, read_texts


def features(source: Any, given: Any = None) -> FeatureTable:
    with Workspace() as workspace:
        return read_features(open_scan(source, workspace), workspace, given)


def test_numbers_texts_and_vectors(tmp_path: Path) -> None:
    table = pa.table({
        "name": ["red car", None],
        "Item ID": [7, 9],
        "price": [1.5, None],
        "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "count": ["3", "4"],
        "nothing": pa.array([None, None], pa.string()),
    })  # fmt: skip
    found = features(table)
    assert found.items == ["7", "9"] and found.numeric_names == ("price", "count")
    np.testing.assert_array_equal(found.numeric, np.array([[1.5, 3], [np.nan, 4]], dtype=np.float32))
    assert found.text == {"name": ["red car", ""], "nothing": ["", ""]}
    np.testing.assert_array_equal(found.embedding, [[1, 2], [3, 4]])


def test_rows_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    order = np.random.default_rng(0).permutation(50_000)
    path.write_text("id,name\n" + "".join(f"{i},n{i}\n" for i in order))
    with Workspace() as workspace:
        found = read_texts(open_scan(path, workspace), workspace)
    assert found["id"] == [str(i) for i in order] and found["name"][0] == f"n{order[0]}"


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
def test_the_index_that_a_frame_writes_into_csv_is_no_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / "features.csv"
    path.write_text(f"{name},item,size\n1,a,2.5\n0,b,3.5\n")
    assert features(path).numeric_names == ("size",)
    with Workspace() as workspace:
        scan = open_scan(path, workspace)
        assert list(read_texts(scan, workspace)) == ["item", "size"]
        index = next(iter(scan.columns))
    assert features(path, {"item": index}).items == ["1", "0"]  # named, it is read


def test_an_index_that_is_all_there_is_is_read() -> None:
    with Workspace() as workspace:
        assert read_texts(open_scan({"Unnamed: 0": ["x"]}, workspace), workspace) == {"Unnamed: 0": ["x"]}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"item": [1, 1], "x": [1, 2]}, "item '1' is in the Table twice"),
        ({"item": [1, None], "x": [1, 2]}, "1 rows of the Table name no item"),
        ({"item": [1, 2]}, "no columns beside 'item'"),
        ({"what": [1, 2], "x": [1, 2]}, "no column for item"),
        ({"item": [1, 2], "x": [[1.0], [1.0, 2.0]]}, "are no vectors of one length"),
        ({"item": [1, 2], "x": [[1.0], [float("nan")]]}, "missing, NaN or infinite"),
        ({"item": pa.array([], pa.int64()), "x": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_features_that_are_none(columns: dict[str, Any], told: str) -> None:
    with pytest.raises(TableError) as caught:
        features(pa.table(columns))
    assert told in str(caught.value)


def test_a_matrix_beside_its_items(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.float64).reshape(3, 2)
    np.save(tmp_path / "x.npy", matrix)
    assert read_matrix(tmp_path / "x.npy", None).items == ["0", "1", "2"]
    found = read_matrix(tmp_path / "x.npy", ["a", "b", "c"])
    np.testing.assert_array_equal(found.embedding, matrix)
    with pytest.raises(TableError, match="has 3 rows and 2 items are named"):
        read_matrix(tmp_path / "x.npy", ["a", "b"])


@pytest.mark.parametrize("content", [np.arange(3), np.array([["a"]]), np.array([[np.inf]]), np.array([[None]]), b"no"])
def test_matrices_that_are_none(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(TableError) as caught:
        read_matrix(path, None)
    assert "\n" not in str(caught.value) and "x.npy" in str(caught.value)
