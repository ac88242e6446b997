"""A file with more rows than fit is refused at once, by every command that would hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import called


@pytest.mark.parametrize(("command", "header"), [("crowd", "item,worker,label"), ("fuse", "object,source,value")])
def test_a_billion_rows(
    command: str, header: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.csv"
    path.write_text(f"{header}\n" + "item1,worker1,label1\n" * 60_000)
    with path.open("r+b") as file:
        file.truncate(21 * 10**9)  # sparse: it takes no place on the disk
    monkeypatch.setattr("gradbase.tables.io._coded.available_bytes", lambda: 16 * 2**30)
    ran = called(cache, command, path, "--out", tmp_path / "out.csv")
    assert (ran.returncode, ran.stdout) == (2, "") and len(ran.stderr.splitlines()) == 1
    assert "rows, which need" in ran.stderr and "16.00 GiB are free" in ran.stderr and "read it in parts" in ran.stderr
    assert not (tmp_path / "out.csv").exists()
