"""Features find their items, whatever order and type both have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradbase.common.errors import TableError
from gradbase.tables.crowd_tables import features_for, load_features, read_claims, with_more_names

CLAIMS = {"item": [30, 5, 5], "worker": ["a", "a", "b"], "label": ["x", "y", "y"]}


def test_items_without_labels_join_in_the_order_of_names() -> None:
    table = {"color": ["red", None, "blue", "green"], "size": [1, 2, 3, None], "item": [5, 7, 30, 100]}
    found = load_features(table, None, None)
    claims, _, _ = read_claims(CLAIMS, table=None, query=None, columns=None, kind="auto", features=found)
    assert claims.items.tolist() == [5, 7, 30, 100] and claims.items[claims.item].tolist() == [5, 5, 30]
    features = features_for(claims, found)
    assert features.text == {"color": ["red", "", "blue", "green"]}
    np.testing.assert_array_equal(features.numeric, [[1], [2], [3], [np.nan]])


def test_the_index_of_a_frame_whose_rows_were_moved_is_no_feature(tmp_path: Path) -> None:
    frame = pd.DataFrame({"item": [5, 7, 30], "size": [1.0, 2.0, 3.0]}).iloc[[2, 0, 1]]
    frame.to_parquet(tmp_path / "moved.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "moved.parquet").names
    for moved in (tmp_path / "moved.parquet", pa.Table.from_pandas(frame), frame):
        found = load_features(moved, None, None)
        assert found.numeric is not None and found.numeric.tolist() == [[3.0], [1.0], [2.0]]


def test_a_matrix_has_to_know_every_item() -> None:
    matrix = np.arange(6.0).reshape(3, 2)
    found = load_features(matrix, ["30", "5", "9"], None)
    claims, _, _ = read_claims(CLAIMS, table=None, query=None, columns=None, kind="auto", features=found)
    np.testing.assert_array_equal(features_for(claims, found).embedding, matrix[[1, 2, 0]])
    short = load_features(matrix[:1], ["30"], None)
    claims, _, _ = read_claims(CLAIMS, table=None, query=None, columns=None, kind="auto", features=short)
    with pytest.raises(TableError, match="1 of 2 items have no features, the first is '5'"):
        features_for(claims, short)


def test_items_that_are_no_numbers_make_all_of_them_texts() -> None:
    names, codes = with_more_names(np.array([5, 30]), np.array([1, 0], dtype=np.int32), ["b7", "30"])
    assert names.tolist() == ["30", "5", "b7"] and codes.tolist() == [0, 1]
