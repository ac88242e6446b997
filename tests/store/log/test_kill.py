"""kill -9, in a loop, of a process that logs and checkpoints on a real disk; and a real disk that is full."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from gradbase.common.errors import StoreError
from gradbase.store.checkpoint import checkpoint_path, complete_checkpoints, verify
from gradbase.store.files import DiskFiles
from gradbase.store.log import DiskFullError, LogReader, LogWriter, Record, open_log
from tests.store.log import keeper

KILLS, SECONDS = 20, 15.0
_SOURCES = Path(__file__).parents[3] / "src"
MIB = 1 << 20


def killed(directory: Path, seed: int, after_s: float) -> dict[str, int]:
    """Run a keeper, kill it `after_s` seconds after its first word, and give the highest number of each word."""
    command = [sys.executable, keeper.__file__, str(directory), str(seed)]
    environment = os.environ | {"PYTHONPATH": str(_SOURCES)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, "the keeper ended by itself"
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    told = {"log": 0, "checkpoint": 0}
    for line in (first + rest[: rest.rfind(b"\n") + 1]).splitlines():
        word, number = line.split()
        told[word.decode()] = max(told[word.decode()], int(number))
    return told


def check(directory: Path, told: dict[str, int]) -> int:
    """Everything acknowledged is there, nothing is torn; the LSN that the log reaches."""
    files = DiskFiles(directory)
    complete = complete_checkpoints(files)
    assert (complete[-1].number if complete else 0) >= told["checkpoint"]
    for checkpoint in complete:
        verify(files, checkpoint)
        found = safetensors.numpy.load_file(directory / checkpoint_path(checkpoint.number) / "parameters.safetensors")
        assert np.array_equal(found["values"], keeper.values_after(checkpoint.number))
    oldest = complete[0].number if complete else 0
    records = list(LogReader(files, "log", after=oldest))
    assert [record.lsn for record in records] == list(range(oldest + 1, oldest + 1 + len(records)))
    assert all(bytes(record.payload) == keeper.payload(record.lsn) for record in records)
    assert oldest + len(records) >= told["log"]
    return oldest + len(records)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_however_often_the_process_is_killed(tmp_path):
    dice, deadline = random.Random(7), time.monotonic() + SECONDS
    told = {"log": 0, "checkpoint": 0}
    kills = reached = 0
    while kills < KILLS and time.monotonic() < deadline:
        seen = killed(tmp_path, kills, dice.random() ** 3 * 0.4)
        told = {word: max(told[word], seen[word]) for word in told}
        reached, before = check(tmp_path, told), reached
        assert reached >= before
        kills += 1
    assert kills >= 3 and reached > 20 and told["checkpoint"] > 0


def test_a_killed_process_gives_its_lock_back(tmp_path):
    told = killed(tmp_path, 1, 0.0)
    appender, _ = open_log(DiskFiles(tmp_path), "log", store_id=keeper.STORE_ID, shard=0)
    with appender:
        assert appender.incarnation == 2 and appender.next_lsn > told["log"]


@pytest.fixture
def small_disk(tmp_path):
    """Three MiB of a real file system; not everybody may mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "disk"
    target.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"size=3m") != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    yield target
    libc.umount2(os.fsencode(target), 2)


def test_a_real_disk_runs_full_and_is_freed(small_disk):
    files = DiskFiles(small_disk)
    appender, _ = open_log(files, "log", store_id=keeper.STORE_ID, shard=0, segment_bytes=MIB)
    told: list[int] = []
    with LogWriter(appender, group_us=0, group_bytes=100_000, on_failed=lambda lsn, error: told.append(lsn)) as log:
        lsn = fill(log)
        durable = log.durable_lsn
        assert told == [durable + 1] and durable > 50
        ballast = small_disk / "ballast"
        assert not ballast.exists() and files.free_bytes() < MIB
        assert [record.lsn for record in LogReader(files, "log")] == list(range(1, durable + 1))
        log.truncate(durable)  # a checkpoint has these: the older segment may go
        deadline = time.monotonic() + 10
        while log.appender.first_lsn == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        for number in range(durable + 1, lsn + 1):
            log.append(Record(number, 1, bytes(9000)))
        assert log.wait(lsn)
    assert [record.lsn for record in LogReader(files, "log", after=durable)] == list(range(durable + 1, lsn + 1))


def fill(log: LogWriter) -> int:
    """Append until the disk is full; the last LSN that was tried."""
    for lsn in range(1, 1000):
        log.append(Record(lsn, 1, bytes(9000)))
        try:
            log.wait(lsn)
        except DiskFullError as error:
            assert "No space left on device" in str(error)
            return lsn
    raise AssertionError("the disk was never full")


def test_a_checkpoint_that_does_not_fit_leaves_no_trace(small_disk):
    files = DiskFiles(small_disk)
    checkpointer = keeper.checkpointer_of(files, keeper.values_after(5))  # 1.5 MiB
    checkpointer.snapshot().write(5, {})
    free = files.free_bytes()
    with pytest.raises(StoreError, match=r"(?s)cannot write checkpoint 6 .*No space left on device.*bytes are free"):
        checkpointer.before_overwrite()
        checkpointer.snapshot().write(6, {})
    assert files.free_bytes() == free and [each.number for each in complete_checkpoints(files)] == [5]


def test_a_limit_on_file_size_is_a_full_disk_too(tmp_path):
    files = DiskFiles(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB // 2, before[1]))
    try:
        with pytest.raises(DiskFullError, match="File too large"):
            open_log(files, "log", store_id=keeper.STORE_ID, shard=0, segment_bytes=MIB)
        appender, _ = open_log(files, "log", store_id=keeper.STORE_ID, shard=0, segment_bytes=MIB // 2)
        with appender, pytest.raises(DiskFullError):
            appender.append([Record(1, 1, bytes(MIB))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with open_log(files, "log", store_id=keeper.STORE_ID, shard=0, segment_bytes=2 * MIB)[0] as log:
        log.append([Record(1, 1, bytes(MIB))])
    assert [record.lsn for record in LogReader(files, "log")] == [1]
