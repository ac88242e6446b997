"""Files are whole or not there, and only where they may be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from gradbase.common.errors import TableError
from gradbase.tables.io import Outputs

ROWS = pa.table({"item": [1, 2], "value": ["a,b", None], "more": [[{"p": 0.5}], None]})


def refused(tmp_path: Path, **wanted: Path | str) -> str:
    with pytest.raises(TableError) as caught:
        Outputs(wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_written_by_ending(tmp_path: Path) -> None:
    with Outputs({"out": tmp_path / "a.parquet", "why": tmp_path / "b.CSV", "other": None}) as outputs:
        assert "why" in outputs and "other" not in outputs
        for name in ("out", "why", "other"):
            outputs.table(name, ROWS)
        assert not (tmp_path / "a.parquet").exists()
        assert outputs.commit() == {"out": tmp_path / "a.parquet", "why": tmp_path / "b.CSV"}
    assert pq.read_table(tmp_path / "a.parquet").equals(ROWS)
    assert (tmp_path / "b.CSV").read_text().splitlines() == ['"item","value","more"', '1,"a,b","[{""p"": 0.5}]"', "2,,"]
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.CSV"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "a.parquet").stat().st_mode & 0o777 == 0o666 & ~mask


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    old = tmp_path / "a.csv"
    old.write_text("old")
    with pytest.raises(KeyboardInterrupt), Outputs({"out": old}) as outputs:
        outputs.table("out", ROWS)
        raise KeyboardInterrupt
    assert old.read_text() == "old" and os.listdir(tmp_path) == ["a.csv"]


def test_refusals_come_before_the_work(tmp_path: Path) -> None:
    assert "does not say what to write; expected an ending of .parquet or .csv" in refused(tmp_path, out="a.xlsx")
    assert "there is no folder" in refused(tmp_path, out=tmp_path / "none" / "a.csv")
    (tmp_path / "link").symlink_to(tmp_path)
    assert "out and why are both" in refused(tmp_path, out=tmp_path / "a.csv", why=tmp_path / "link" / "a.csv")
    (tmp_path / "dir.csv").mkdir()
    assert "is a folder" in refused(tmp_path, out=tmp_path / "dir.csv")
    with pytest.raises(TableError, match="expected an ending of .html"):
        Outputs({"html": "a.csv"}, endings={"html": (".html",)})


def test_an_input_is_not_overwritten_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    for name in ("in.csv", "link.csv"):
        with pytest.raises(TableError, match="is also read"):
            Outputs({"out": tmp_path / name}, inputs=[str(tmp_path / "in.csv"), None, {"item": [1]}])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "permission denied" in refused(tmp_path, out=tmp_path / "a.csv")


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(rows: object, path: Path) -> None:
        path.write_text("half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.csv.write_csv", half)
    full = pytest.raises(TableError, match="a.csv cannot be written: No space left")
    with full, Outputs({"out": tmp_path / "a.csv"}) as outputs:
        outputs.table("out", ROWS)
    assert os.listdir(tmp_path) == []
