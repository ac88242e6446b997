"""Several real processes on one catalogue: nothing lost, killed or not."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from gradbase.catalog import Catalog, OperatorStatistics

HERE = {"device": "cpu", "torch_version": "2.13.0", "threads": 2}
WRITERS = 6
BATCHES = 10
ROWS = 30

# Each writer records rows of its own and rows all share, and says so after every transaction.
WRITER = f"""
import sys
from pathlib import Path
from gradbase.catalog import Catalog, OperatorStatistics
path, name, batches = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
for batch in range(batches):
    with Catalog(path) as catalog:
        own = [OperatorStatistics("own", f"{{name}} {{batch}} {{row}}", 1.0, 0.0, 1, 0) for row in range({ROWS})]
        shared = [OperatorStatistics("shared", f"shared {{row}}", 2.0, 0.0, 1, 0) for row in range({ROWS})]
        catalog.record(own + shared, device="cpu", torch_version="2.13.0", threads=2)
    print(batch, flush=True)
"""


def start(path: Path, name: str, batches: int = BATCHES) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(batches)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def run_together(path: Path) -> list[str]:
    """Standard error of writers that start at once and run to their end."""
    writers = [start(path, f"writer {number}") for number in range(WRITERS)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outcomes = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, outcomes
    return [errors for _, errors in outcomes]


def expect_all_rows(path: Path) -> None:
    with Catalog(path) as catalog:
        own, shared = (
            catalog.query(f"SELECT count(*), sum(count) FROM statistics WHERE op = '{op}'")[1]
            for op in ("own", "shared")
        )
    assert own == [(WRITERS * BATCHES * ROWS, WRITERS * BATCHES * ROWS)]
    assert shared == [(ROWS, WRITERS * BATCHES * ROWS)]


def test_writers_that_create_one_catalogue_together_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    errors = run_together(path)
    expect_all_rows(path)
    assert errors == [""] * WRITERS  # and none of them thought the file of another damaged


def test_writers_that_meet_one_damage_together_set_it_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"garbage" * 1000)
    errors = run_together(path)
    expect_all_rows(path)
    assert sum("is damaged" in error for error in errors) == 1
    assert [kept.name for kept in tmp_path.glob("*.damaged-*")] == ["catalog.sqlite.damaged-1"]


def test_killed_writers_leave_whole_transactions_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    chance = random.Random(7)
    for number in range(5):
        writer = start(path, f"victim {number}", batches=10**6)
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
        writer.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.06))
        writer.send_signal(signal.SIGKILL)
        told = 1 + len(writer.stdout.read().split())
        writer.wait()
        writer.stdin.close()
        with Catalog(path) as catalog:
            sql = f"SELECT count(*) FROM statistics WHERE signature LIKE 'victim {number} %'"
            ((rows,),) = catalog.query(sql)[1]
        assert rows % ROWS == 0, "half a transaction was kept"
        assert told <= rows // ROWS <= told + 1, "a finished transaction was lost"
    assert not list(tmp_path.glob("*.damaged-*"))
    with sqlite3.connect(path) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_threads_may_share_one_catalogue(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        entry = OperatorStatistics("op", "shared", 1.0, 0.0, 1, 0)

        def work() -> None:
            for _ in range(20):
                catalog.record([entry], **HERE)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert catalog.lookup(["shared"], "cpu", "2.13.0", 2)["shared"].count == 80
