"""Statistics come back from their file as they went in, and only to the operator they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gradbase.common.errors import TableError
from gradbase.tables.state import load_state, save_state

TABLES = {
    "counts": pa.table({"name": ["a", None], "count": [1, 2], "share": [0.5, float("nan")]}),
    "none": pa.table({"name": pa.array([], pa.string())}),
}


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "it's.duckdb"
    path.touch()
    save_state(path, "crowd", TABLES)
    found = load_state(path, "crowd")
    assert found.keys() == TABLES.keys() and found["counts"]["name"].tolist() == ["a", None]
    np.testing.assert_array_equal(found["counts"]["share"], [0.5, np.nan])
    assert found["counts"]["count"].dtype == np.int64 and len(found["none"]["name"]) == 0
    assert load_state(TABLES, "crowd")["counts"]["count"].tolist() == [1, 2]


def test_states_of_others_and_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    save_state(path, "crowd", TABLES)
    with pytest.raises(TableError, match="is a state of crowd; expected one of fuse"):
        load_state(path, "fuse")
    for content in (b"", b"none", path.read_bytes()[:4096]):
        path.write_bytes(content)
        with pytest.raises(TableError, match=r"s\.duckdb is (not a|no) state"):
            load_state(path, "crowd")
