"""Whatever happened to the file: a warning and a new one, or a CatalogError that says what to do."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gradbase.catalog import Catalog, OperatorStatistics, TierStatistics
from gradbase.common.errors import CatalogError

HERE = {"device": "cpu", "torch_version": "2.13.0", "threads": 2}
ROWS = 400


def entries(count: int = ROWS) -> list[OperatorStatistics]:
    return [
        OperatorStatistics("aten.mm.default", f"mm f32[{n}]" + "x" * 50, 1.0 + n, 0.5, 1, n, ((n, (n, 1)),))
        for n in range(count)
    ]


def filled(path: Path) -> Path:
    with Catalog(path) as catalog:
        catalog.record(entries(), **HERE)
    return path


def everything(catalog: Catalog) -> dict[str, OperatorStatistics]:
    return catalog.lookup([e.signature for e in entries()], "cpu", "2.13.0", 2)


def works(catalog: Catalog) -> None:
    """Recording and reading back work on whatever file is there now."""
    fresh = OperatorStatistics("aten.add.Tensor", "add f32[7]", 3.0, 0.1, 1, 0)
    catalog.record([fresh], **HERE)
    assert fresh.signature in catalog.lookup([fresh.signature], "cpu", "2.13.0", 2)


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


def corrupt_header(path: Path) -> None:
    filled(path)
    with path.open("r+b") as file:
        file.write(b"not SQLite at all")


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE statistics (bookmark TEXT)")
    other.close()


def another_version(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()


def a_column_missing(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE runs")
        other.execute("CREATE TABLE runs (id INTEGER)")
    other.close()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty_file, "it is empty"),
        (garbage, "not a database"),
        (corrupt_header, "not a database"),
        (foreign_database, "another program's"),
        (another_version, "version 99"),
        (a_column_missing, "runs has columns"),
    ],
)
def test_a_damaged_file_is_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "catalog.sqlite"
    spoil(path)
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING, "gradbase.catalog"), Catalog(path) as catalog:
        works(catalog)
    assert (tmp_path / "catalog.sqlite.damaged-1").read_bytes() == before
    (message,) = [record.getMessage() for record in caplog.records if record.name == "gradbase.catalog"]
    assert reason in message and "damaged-1" in message


def test_set_aside_files_never_replace_one_another(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    for number in (1, 2, 3):
        path.write_bytes(b"damage %d" % number)
        Catalog(path).close()
    kept = [(tmp_path / f"catalog.sqlite.damaged-{number}").read_bytes() for number in (1, 2, 3)]
    assert kept == [b"damage 1", b"damage 2", b"damage 3"]


def test_pages_that_are_corrupt_show_on_use_and_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path / "catalog.sqlite")
    with path.open("r+b") as file:
        file.seek(8 * 4096)  # past the schema, so that opening succeeds
        file.write(b"\xff" * (path.stat().st_size - 8 * 4096))
    with Catalog(path) as catalog:
        assert not (tmp_path / "catalog.sqlite.damaged-1").exists()
        assert everything(catalog) == {}
        works(catalog)
    assert (tmp_path / "catalog.sqlite.damaged-1").exists()
    assert "is damaged" in caplog.text


def test_a_query_meets_damage_as_any_other_work_does(tmp_path: Path) -> None:
    path = filled(tmp_path / "catalog.sqlite")
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xff" * (path.stat().st_size - 8 * 4096))
    with Catalog(path) as catalog:
        assert catalog.query("SELECT max(outputs) FROM statistics")[1] == [(None,)]


@pytest.mark.parametrize(
    "update",
    [
        "outputs = 'not JSON'",
        "outputs = '[3]'",
        "op = x'ff00'",
        "moved_bytes = -5",
        "time_us = 9e999",
        "details = x'01'",
    ],
)
def test_rows_that_are_not_ours_are_damage(tmp_path: Path, update: str) -> None:
    path = filled(tmp_path / "catalog.sqlite")
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE statistics SET {update} WHERE scratch_bytes = 7")
    other.close()
    with Catalog(path) as catalog:
        assert everything(catalog) == {}
    assert (tmp_path / "catalog.sqlite.damaged-1").exists()


def test_a_tier_that_is_not_ours_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    with Catalog(path) as catalog:
        catalog.record_tier(TierStatistics("m", "disk", 1.0, 1.0, 1.0, 0.1, False))
    with sqlite3.connect(path) as other:
        other.execute("UPDATE tiers SET read_bytes_per_us = 0")
    other.close()
    with Catalog(path) as catalog:
        assert catalog.lookup_tier("m") is None
    assert (tmp_path / "catalog.sqlite.damaged-1").exists()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return filled(tmp_path_factory.mktemp("pristine") / "catalog.sqlite").read_bytes()


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_crashes(tmp_path: Path, pristine: bytes, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "catalog.sqlite"
    content = bytearray(pristine)
    if seed % 2:
        del content[chance.randrange(len(content)) :]
    for _ in range(chance.randrange(1, 12) if content else 0):
        start = chance.randrange(min(len(content), 4096 if seed % 3 == 0 else len(content)))
        damage = chance.randbytes(chance.choice((1, 16, 300)))
        content[start : start + len(damage)] = damage
    path.write_bytes(content)
    with Catalog(path) as catalog:
        everything(catalog)
        catalog.record(entries(), **HERE)
        works(catalog)
        _, rows = catalog.query("SELECT op, avg(time_us) FROM statistics GROUP BY op")
    assert {op for op, _ in rows} >= {entry.op for entry in entries()}


def test_a_stale_log_is_not_replayed_into_a_new_database(tmp_path: Path) -> None:
    """A log whose database was set aside or deleted would bring the old pages back."""
    path = tmp_path / "catalog.sqlite"
    with Catalog(path) as catalog:
        catalog.record(entries(), **HERE)
        shutil.copy(f"{path}-wal", tmp_path / "log")
    path.unlink()
    shutil.copy(tmp_path / "log", f"{path}-wal")
    with Catalog(path) as catalog:
        assert everything(catalog) == {}
        works(catalog)


def test_a_file_deleted_while_open_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    with Catalog(path) as catalog:
        catalog.record(entries(), **HERE)
        path.unlink()
        assert everything(catalog) == {}
        works(catalog)
    assert path.exists()


def test_a_peer_follows_to_the_new_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "catalog.sqlite")
    with Catalog(path) as peer, Catalog(path) as finder:
        with path.open("r+b") as file:
            file.write(b"\0" * 4096)
        Path(f"{path}-wal").unlink(missing_ok=True)
        finder.close()
        with Catalog(path) as other:
            other.record(entries(3), **HERE)
            works(peer)
            assert other.query("SELECT count(*) FROM statistics")[1] == [(4,)]


def test_a_half_built_file_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.with_name("catalog.sqlite.new").write_bytes(b"half a database")
    with Catalog(path) as catalog:
        works(catalog)
    assert not (tmp_path / "catalog.sqlite.damaged-1").exists()


def test_something_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    os.mkfifo(path)
    with pytest.raises(CatalogError, match="it is not a file"):
        Catalog(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    with pytest.raises(CatalogError, match="--catalog FILE"):
        Catalog(tmp_path)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match="--catalog FILE"):
        Catalog(tmp_path / "file" / "catalog.sqlite")


@pytest.mark.parametrize("locked", ["directory", "file"])
def test_no_permission_is_an_error_with_the_remedy(tmp_path: Path, locked: str) -> None:
    """Root may write anywhere, so the work is done by a process without its rights."""
    path = tmp_path / "folder" / "catalog.sqlite"
    if locked == "file":
        filled(path)
        path.chmod(0o444)
    else:
        path.parent.mkdir()
        path.parent.chmod(0o555)
    before = path.read_bytes() if path.exists() else None
    script = f"""
import os
from pathlib import Path
from gradbase.catalog import Catalog
from gradbase.common.errors import CatalogError
if os.getuid() == 0:
    os.chdir("/"); os.setgid(65534); os.setuid(65534)
try:
    Catalog(Path({str(path)!r}))
except CatalogError as error:
    print(error)
"""
    if os.getuid() == 0:  # pytest's folders are for root alone
        for folder in [tmp_path, *tmp_path.parents[:2]]:
            folder.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    path.parent.chmod(0o755)
    assert done.stdout.startswith("[catalog] the catalogue"), done.stderr
    assert "--catalog FILE" in done.stdout
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_lock_held_too_long_is_an_error_and_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradbase.catalog._database.BUSY_TIMEOUT_S", 0.05)
    path = filled(tmp_path / "catalog.sqlite")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Catalog(path) as catalog, pytest.raises(CatalogError, match="locked"):
        catalog.record(entries(1), **HERE)
    holder.close()
    assert not (tmp_path / "catalog.sqlite.damaged-1").exists()


def test_a_full_disk_is_an_error_and_not_damage(tmp_path: Path) -> None:
    path = filled(tmp_path / "catalog.sqlite")
    with Catalog(path) as catalog:
        connection = catalog._database._connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")  # how SQLite stands in for a full disk
        more = [OperatorStatistics("op", f"other {n}" + "y" * 200, 1.0, 0.0, 1, 0) for n in range(500)]
        with pytest.raises(CatalogError, match="full"):
            catalog.record(more, **HERE)
        assert len(everything(catalog)) == ROWS
    assert not (tmp_path / "catalog.sqlite.damaged-1").exists()
