"""The log against a plain list: a prefix of what was appended comes back, with all that was durable."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import DamageError, StoreError
from gradbase.store.files import DiskFiles
from gradbase.store.files.testing import Crash, MemoryFile, MemoryFiles
from gradbase.store.log import COORDINATOR, SEGMENT_BYTES, Appender, DiskFullError, LogReader, Record, open_log

STORE = bytes(range(16))
BLOCK = 4096
SEGMENT = 16 * BLOCK


def opened(files, after=0, shard=0) -> Appender:
    return open_log(files, "log/0", store_id=STORE, shard=shard, segment_bytes=SEGMENT, after=after)[0]


def record(lsn: int, nbytes: int = 20, kind: int = 1) -> Record:
    return Record(lsn, kind, bytes([lsn % 251]) * nbytes, lsn % 256, 3, 2, lsn % 7, 5, lsn * 10)


def read(files, after=0) -> list[Record]:
    return [replace(each, payload=bytes(each.payload)) for each in LogReader(files, "log/0", after=after)]


@pytest.fixture(params=["disk", "memory", "memory without direct I/O"])
def files(request, tmp_path):
    return DiskFiles(tmp_path) if request.param == "disk" else MemoryFiles(direct=request.param == "memory")


def test_what_was_appended_is_read(files):
    records = [record(1), record(2, 0), record(3, 5000), record(4, 3 * SEGMENT), record(5, 1)]
    with opened(files) as log:
        log.append(records[:2])
        log.append(records[2:3])
        log.append(records[3:])
        assert log.next_lsn == 6
    assert read(files) == records
    assert read(files, after=3) == records[3:]


def test_a_log_takes_little_room_at_first_and_then_ever_more_at_once(tmp_path):
    """Reserved before it is written: the room is there when the name is."""
    files, most = DiskFiles(tmp_path), SEGMENT_BYTES
    rooms = []
    with open_log(files, "log/0", store_id=STORE, shard=0)[0] as log:
        for lsn in range(1, 200):
            log.append([record(lsn, 1 << 18)])
            log.prepare()
            state = (tmp_path / log._segments[-1].path).stat()
            assert 512 * state.st_blocks >= state.st_size
            rooms += [state.st_size] if state.st_size not in rooms else []
    assert rooms == [most >> 4, most >> 3, most >> 2, most >> 1, most]
    taken = sum(512 * each.stat().st_blocks for each in tmp_path.rglob("*.log"))
    assert taken < 200 * ((1 << 18) + 2 * BLOCK), "what was reserved and not used is given back"
    assert [each.lsn for each in read(files)] == list(range(1, 200))


def test_a_payload_may_be_several_buffers(files):
    import numpy as np

    parts = [b"head", memoryview(np.arange(6, dtype=np.float32)), bytearray(b"tail")]
    with opened(files) as log:
        log.append([Record(1, 2, parts)])
    assert read(files)[0].payload == b"head" + np.arange(6, dtype=np.float32).tobytes() + b"tail"


def test_every_opening_has_a_higher_incarnation_and_goes_on(files):
    for number in range(1, 6):
        with opened(files) as log:
            assert (log.incarnation, log.next_lsn) == (number, number)
            log.append([record(number)])
    assert [each.lsn for each in read(files)] == [1, 2, 3, 4, 5]


def test_openings_without_records_leave_one_segment(files):
    for _ in range(4):
        opened(files).close()
    assert [name for name in files.names("log/0") if name != "LOCK"] == [f"{1:020d}.log"]


def test_one_opening_at_a_time(files):
    with opened(files), pytest.raises(StoreError, match="another process has the log"):
        opened(files)
    opened(files).close()


def test_another_stores_log_is_refused(files):
    opened(files).close()
    with pytest.raises(StoreError, match="belongs to shard 0 of store 0001"):
        opened(files, shard=COORDINATOR)


def test_truncation_keeps_what_a_checkpoint_does_not_have(files):
    with opened(files) as log:
        for lsn in range(1, 41):
            log.append([record(lsn)])
        log.truncate(29)
        assert 1 < log.first_lsn <= 30
    assert read(files, after=29) == [record(lsn) for lsn in range(30, 41)]
    with pytest.raises(DamageError, match="the log begins at LSN"):
        read(files)
    with opened(files) as log:
        assert log.next_lsn == 41


def test_an_empty_log_begins_after_the_checkpoint(files):
    with opened(files, after=120) as log:
        log.append([record(121)])
    assert [each.lsn for each in read(files, after=120)] == [121]


@settings(max_examples=150)
@given(
    seed=st.integers(0, 1 << 30),
    stop_after=st.integers(1, 60),
    sizes=st.lists(st.lists(st.sampled_from([0, 1, 20, 4000, 4024, 9000, 70000]), min_size=1, max_size=4), max_size=12),
    cuts=st.lists(st.booleans(), min_size=12, max_size=12),
    direct=st.booleans(),
)
def test_a_crash_at_any_point_loses_nothing_that_was_durable(seed, stop_after, sizes, cuts, direct):
    files = MemoryFiles(seed, direct=direct)
    model: list[Record] = []
    durable = checkpoint = 0
    for _ in range(3):  # crash, and crash again while recovering and going on
        files.stop_after, files.calls = stop_after, 0
        try:
            log = opened(files, after=checkpoint)
            assert durable <= log.next_lsn - 1 <= len(model)
            del model[log.next_lsn - 1 :]  # appended, not acknowledged, not there
            for group, cut in zip(sizes, cuts, strict=False):
                records = [record(len(model) + 1 + i, nbytes) for i, nbytes in enumerate(group)]
                model += records
                log.append(records)
                durable = len(model)
                if cut:
                    checkpoint = durable
                    log.truncate(checkpoint)
            log.close()
        except Crash:
            pass
        files = files.after_crash()
    found = read(files, after=checkpoint)
    assert found == model[checkpoint : checkpoint + len(found)]
    assert checkpoint + len(found) >= durable


def _filled(groups: int = 6, close: bool = True) -> MemoryFiles:
    files = MemoryFiles()
    log = opened(files)
    for lsn in range(1, groups + 1):
        log.append([record(lsn, 4000)])
    if close:
        log.close()
    return files


@settings(max_examples=200)
@given(offset=st.integers(0, 6 * BLOCK), bit=st.integers(0, 7), groups=st.integers(6, 20))
def test_a_flipped_bit_is_never_read_and_never_skipped(offset, bit, groups):
    """Every bit of header and records is guarded; bits of padding mean nothing."""
    files = _filled(groups)
    names = [name for name in files.names("log/0") if name.endswith(".log")]
    files.flip(f"log/0/{names[0]}", offset, bit)
    found = []
    try:
        for each in LogReader(files, "log/0"):
            found.append(replace(each, payload=bytes(each.payload)))
    except DamageError as error:
        assert error.path == f"log/0/{names[0]}" and error.offset <= offset < error.offset + 2 * BLOCK
        assert error.lsn == len(found) + 1 or error.offset == 0
        assert f"LSN {error.lsn}" in str(error)
    else:
        assert len(found) == groups
    assert found == [record(lsn, 4000) for lsn in range(1, len(found) + 1)]


def test_a_torn_tail_is_cut_and_reported():
    files = _filled(3, close=False)
    path = f"log/0/{1:020d}.log"
    files.flip(path, BLOCK * 3 + 100)
    files = files.after_crash()
    log, reader = open_log(files, "log/0", store_id=STORE, shard=0, segment_bytes=SEGMENT)
    assert reader.torn is not None
    assert (reader.torn.path, reader.torn.offset, reader.torn.lsn, reader.torn.nbytes) == (path, 3 * BLOCK, 3, BLOCK)
    assert log.next_lsn == 3 and files.open(path).size() == 3 * BLOCK
    log.append([record(3, 1)])
    assert [each.lsn for each in read(files)] == [1, 2, 3]


def test_damage_before_a_whole_group_is_refused_with_its_lsn():
    files = _filled(3, close=False)
    files.flip(f"log/0/{1:020d}.log", BLOCK * 2 + 100)
    with pytest.raises(DamageError, match=r"damaged at LSN 2: log/0/0+1\.log, byte 8192") as caught:
        opened(files.after_crash())
    assert (caught.value.lsn, caught.value.offset) == (2, 2 * BLOCK)


def test_the_last_group_of_a_closed_log_is_guarded_too():
    files = _filled(3)
    files.flip(f"log/0/{1:020d}.log", BLOCK * 3 + 100)
    with pytest.raises(DamageError, match="damaged at LSN 3"):
        opened(files)


def test_a_segment_that_is_gone_is_damage():
    files = _filled(40)
    names = [name for name in files.names("log/0") if name.endswith(".log")]
    assert len(names) == 3
    files.remove(f"log/0/{names[1]}")
    with pytest.raises(DamageError, match=f"damaged at LSN {int(names[1][:-4])}"):
        read(files)


def test_a_full_disk_loses_nothing_and_the_log_goes_on_when_there_is_room():
    files = MemoryFiles(capacity=2 * SEGMENT + BLOCK)
    log = opened(files)
    lsn = 1
    with pytest.raises(DiskFullError, match=f"(?s)no room for LSN.*records before LSN.*{BLOCK} bytes are free"):
        while True:
            log.append([record(lsn, 4000)])
            lsn += 1
    assert log.next_lsn == lsn == 31
    with pytest.raises(DiskFullError):
        log.append([record(lsn, 4000)])
    files.capacity = 4 * SEGMENT
    log.append([record(lsn, 4000)])
    log.close()
    assert read(files) == [record(each, 4000) for each in range(1, lsn + 1)]


def test_a_full_disk_shows_while_there_is_room_in_the_segment():
    files = MemoryFiles(capacity=SEGMENT + BLOCK)
    log = opened(files)
    for lsn in range(1, 9):
        log.append([record(lsn, 4000)])
        log.prepare()
    assert log.warning is not None and "no room for the next segment" in str(log.warning)
    log.append([record(9, 4000)])
    files.capacity = 8 * SEGMENT
    log.prepare()
    assert log.warning is None


def test_a_reserved_segment_is_used_when_the_disk_is_full_later():
    files = MemoryFiles(capacity=2 * SEGMENT + BLOCK)
    log = opened(files)
    for lsn in range(1, 10):
        log.append([record(lsn, 4000)])
    log.prepare()
    files.capacity = 0
    for lsn in range(10, 25):
        log.append([record(lsn, 4000)])
    assert len(read(files)) == 24


def test_after_a_failed_write_nothing_is_taken(monkeypatch):
    files = MemoryFiles()
    log = opened(files)
    log.append([record(1)])

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "write", fails)
        with pytest.raises(StoreError, match="records before LSN 2 are durable"):
            log.append([record(2)])
    with pytest.raises(StoreError, match="Input/output error"):
        log.append([record(2)])
    log.close()
    assert read(files) == [record(1)]
    assert opened(files).next_lsn == 2
