"""Records of the machines, to bytes and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.common.errors import StoreError
from gradbase.store.files.testing import MemoryFiles
from gradbase.store.log import LogReader, RawUpdates, Record, from_record, open_log, to_record
from gradbase.store.machine.messages import CheckpointRecord, PushRecord, StepRecord, TermRecord

u32 = st.integers(0, (1 << 32) - 1)
u63 = st.integers(0, (1 << 63) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
updates = st.none() | st.binary(max_size=50)
batches = st.tuples(u32, st.integers(0, 9)).map(lambda run: tuple(range(run[0], sum(run)))) | st.lists(u63).map(tuple)
contents = st.one_of(
    st.builds(StepRecord, st.just(1), u32, u32, u63, batches, i64, updates),
    st.builds(PushRecord, st.just(1), u32, u32, st.integers(0, 65535), u32, u63, i64, updates),
    st.builds(TermRecord, st.just(1), u32),
    st.builds(CheckpointRecord, st.just(1), u63, st.lists(u63).map(tuple)),
)


class Plain(RawUpdates):
    def from_bytes(self, codec, data):
        assert codec == 1
        return bytes(data)


@given(content=contents)
def test_what_a_machine_logged_comes_back(content):
    files = MemoryFiles()
    with open_log(files, "log", store_id=bytes(16), shard=0, segment_bytes=1 << 16)[0] as log:
        log.append([to_record(content, Plain())])
    assert [from_record(record, Plain()) for record in LogReader(files, "log")] == [content]


def test_a_command_record_is_small():
    step = StepRecord(7, 1, 2, 900, tuple(range(3600, 3604)), 42, None)
    assert to_record(step, Plain()).nbytes == 60


@pytest.mark.parametrize("record", [Record(5, 9), Record(5, 1, b"short")])
def test_a_record_of_another_version_is_named(record):
    with pytest.raises(StoreError, match=f"record 5 of kind {record.kind}"):
        from_record(record, Plain())
