"""Group commit on its thread: grouping, acknowledgement, full and broken disks."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from gradbase.common.errors import StoreError
from gradbase.store.files import DiskFiles
from gradbase.store.files.testing import MemoryFile, MemoryFiles
from gradbase.store.log import DiskFullError, LogReader, LogWriter, Record, open_log

SEGMENT = 16 * 4096
HOUR_US = 3.6e9


def appender(files):
    return open_log(files, "log", store_id=bytes(16), shard=0, segment_bytes=SEGMENT)[0]


def record(lsn: int, nbytes: int = 100) -> Record:
    return Record(lsn, 1, bytes(nbytes))


def lsns(files) -> list[int]:
    return [each.lsn for each in LogReader(files, "log")]


def groups_of(writer: LogWriter) -> list[int]:
    """Sizes of groups, as they are written from here on."""
    sizes: list[int] = []
    append = writer.appender.append
    writer.appender.append = lambda records: (sizes.append(len(records)), append(records))[1]
    return sizes


def test_records_that_nobody_waits_for_are_written_together_after_a_while(tmp_path):
    files = DiskFiles(tmp_path)
    with LogWriter(appender(files), group_us=50_000) as log:
        sizes = groups_of(log)
        for lsn in range(1, 6):
            log.append(record(lsn))
        assert log.durable_lsn == 0
        deadline = time.monotonic() + 10
        while log.durable_lsn < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert log.durable_lsn == 5 and sizes == [5]
    assert lsns(files) == [1, 2, 3, 4, 5]


def test_a_full_group_does_not_wait(tmp_path):
    with LogWriter(appender(DiskFiles(tmp_path)), group_us=HOUR_US, group_bytes=1000) as log:
        for lsn in range(1, 9):
            log.append(record(lsn))
        deadline = time.monotonic() + 10
        while log.durable_lsn < 7 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert log.durable_lsn == 7  # seven records of 140 bytes are the most that fit


def test_waiting_makes_durable(tmp_path):
    told: list[int] = []
    with LogWriter(appender(DiskFiles(tmp_path)), group_us=HOUR_US, on_durable=told.append) as log:
        log.append(record(1))
        log.append(record(2))
        assert not log.wait(3, timeout_s=0.01)
        assert log.wait(2) and log.durable_lsn == 2 and told[-1] == 2
        log.append(record(3))
        log.sync(3)
        assert log.wait(3)


def test_closing_writes_what_was_appended(tmp_path):
    files = DiskFiles(tmp_path)
    with LogWriter(appender(files), group_us=HOUR_US) as log:
        log.append(record(1))
    reader = LogReader(files, "log")
    assert [each.lsn for each in reader] == [1] and reader.closed


def test_old_segments_go_after_a_checkpoint(tmp_path):
    files = DiskFiles(tmp_path)
    with LogWriter(appender(files), group_us=0) as log:
        for lsn in range(1, 60):
            log.append(record(lsn, 4000))
            log.wait(lsn)
        log.truncate(50)
        deadline = time.monotonic() + 10
        while log.appender.first_lsn == 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert 1 < log.appender.first_lsn <= 51
    assert [each.lsn for each in LogReader(files, "log", after=50)] == list(range(51, 60))


def test_a_backlog_waits_for_the_disk(monkeypatch):
    writing, go_on = threading.Event(), threading.Event()
    files = MemoryFiles()
    plain = MemoryFile.write

    def slow(*arguments):
        writing.set()
        assert go_on.wait(10)
        plain(*arguments)

    with LogWriter(appender(files), backlog_bytes_max=250) as log:
        monkeypatch.setattr(MemoryFile, "write", slow)
        log.append(record(1))
        log.sync(1)
        assert writing.wait(10)
        log.append(record(2))  # 280 bytes now
        third = threading.Thread(target=lambda: log.append(record(3)))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        go_on.set()
        third.join(10)
        assert not third.is_alive() and log.wait(3)


def test_a_full_disk_is_told_once_and_the_caller_appends_again():
    files = MemoryFiles(capacity=SEGMENT + 4096)
    told: list[tuple[int, StoreError]] = []
    with LogWriter(appender(files), group_us=0, group_bytes=8000, on_failed=lambda *what: told.append(what)) as log:
        for lsn in range(1, 31):
            log.append(record(lsn, 8000))
        with pytest.raises(DiskFullError, match="no room for LSN 8 of the log"):
            log.wait(30)
        assert log.durable_lsn == 7
        log.append(record(31))  # its caller does not know yet; dropped like the others
        files.capacity = 64 * SEGMENT
        for lsn in range(8, 32):
            log.append(record(lsn, 8000))
        assert log.wait(31)
    assert [lsn for lsn, _ in told] == [8]
    assert lsns(files) == list(range(1, 32))


def test_a_broken_disk_takes_nothing_more(monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    files = MemoryFiles()
    log = LogWriter(appender(files), group_us=0)
    log.append(record(1))
    log.wait(1)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "write", fails)
        log.append(record(2))
        with pytest.raises(StoreError, match="Input/output error"):
            log.wait(2)
    with pytest.raises(StoreError, match="Input/output error"):
        log.append(record(2))
    log.close()
    assert lsns(files) == [1]
