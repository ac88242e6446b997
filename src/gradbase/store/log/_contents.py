"""What the machines put into logs, as records with bytes, and back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gradbase.common.errors import StoreError
from gradbase.store.log._format import Buffer, Record
from gradbase.store.machine.messages import CheckpointRecord, PushRecord, StepRecord, TermRecord
from gradbase.store.machine.messages import Record as Content

STEP, PUSH, TERM, CHECKPOINT = 1, 2, 3, 4
KINDS = {STEP: "step", PUSH: "push", TERM: "term", CHECKPOINT: "checkpoint"}

_STEP = struct.Struct("<qqI")
_BATCH = struct.Struct("<q")
_LISTED = 1 << 31


class Updates(Protocol):
    """How updates become bytes, without being changed: what is logged is what was applied."""

    def to_bytes(self, update: Any) -> tuple[int, Sequence[Buffer]]:
        """A codec's number, 1 to 255, and buffers that follow each other."""

    def from_bytes(self, codec: int, data: memoryview) -> Any:
        """The update again; it may be a view into `data`."""


class RawUpdates:
    """Updates that are bytes already: codec 1 is bytes as they are."""

    def to_bytes(self, update: Buffer) -> tuple[int, Sequence[Buffer]]:
        return 1, (update,)

    def from_bytes(self, codec: int, data: memoryview) -> tuple[int, memoryview]:
        """The codec and the bytes: for those who show a log and do not apply it."""
        return codec, data


def to_record(content: Content, updates: Updates) -> Record:
    """A machine's record, ready to append. Buffers of its update are referred to, not copied."""
    if isinstance(content, StepRecord):
        codec, parts = _packed_update(content.update, updates)
        payload = [_pack_step(content.seed, content.batches), *parts]
        return Record(content.lsn, STEP, payload, codec, content.term, content.incarnation, sequence=content.step)
    if isinstance(content, PushRecord):
        codec, parts = _packed_update(content.update, updates)
        payload = [_BATCH.pack(content.batch), *parts]
        return Record(
            content.lsn, PUSH, payload, codec, content.term, content.incarnation, content.worker, content.session,
            content.seq,
        )  # fmt: skip
    if isinstance(content, TermRecord):
        return Record(content.lsn, TERM, term=content.term)
    assert isinstance(content, CheckpointRecord)
    lsns = struct.pack(f"<{len(content.lsns)}Q", *content.lsns)
    return Record(content.lsn, CHECKPOINT, lsns, sequence=content.number)


def from_record(record: Record, updates: Updates) -> Content:
    """What `to_record` was given. Raises StoreError for a kind or a payload that no version of this program wrote."""
    assert isinstance(record.payload, (bytes, bytearray, memoryview)), "a record that was read has one payload"
    data = memoryview(record.payload)
    try:
        return _CONTENTS[record.kind](record, data, updates)
    except (KeyError, struct.error) as error:
        raise StoreError(
            f"record {record.lsn} of kind {record.kind} with {len(data)} bytes cannot be read",
            "it was written by another version of gradbase; use that one",
        ) from error


def _step(record: Record, data: memoryview, updates: Updates) -> StepRecord:
    seed, batches, rest = _unpack_step(data)
    update = updates.from_bytes(record.codec, rest) if record.codec else None
    return StepRecord(record.lsn, record.incarnation, record.term, record.sequence, batches, seed, update)


def _push(record: Record, data: memoryview, updates: Updates) -> PushRecord:
    (batch,) = _BATCH.unpack_from(data)
    update = updates.from_bytes(record.codec, data[_BATCH.size :]) if record.codec else None
    return PushRecord(
        record.lsn, record.incarnation, record.term, record.worker, record.session, record.sequence, batch, update
    )


def _term(record: Record, data: memoryview, updates: Updates) -> TermRecord:
    return TermRecord(record.lsn, record.term)


def _checkpoint(record: Record, data: memoryview, updates: Updates) -> CheckpointRecord:
    return CheckpointRecord(record.lsn, record.sequence, struct.unpack(f"<{len(data) // 8}Q", data))


_CONTENTS: dict[int, Callable[[Record, memoryview, Updates], Content]] = {
    STEP: _step,
    PUSH: _push,
    TERM: _term,
    CHECKPOINT: _checkpoint,
}


def _packed_update(update: Any, updates: Updates) -> tuple[int, Sequence[Buffer]]:
    if update is None:
        return 0, ()
    codec, parts = updates.to_bytes(update)
    assert 0 < codec < 256, "codec 0 says that there is no update"
    return codec, parts


def _pack_step(seed: int, batches: tuple[int, ...]) -> bytes:
    first, count = (batches[0], len(batches)) if batches else (0, 0)
    if batches == tuple(range(first, first + count)):
        return _STEP.pack(seed, first, count)
    return _STEP.pack(seed, first, count | _LISTED) + struct.pack(f"<{count}q", *batches)


def _unpack_step(data: memoryview) -> tuple[int, tuple[int, ...], memoryview]:
    """Seed, batches, and what follows them."""
    seed, first, count = _STEP.unpack_from(data)
    rest = data[_STEP.size :]
    if not count & _LISTED:
        return seed, tuple(range(first, first + count)), rest
    count &= ~_LISTED
    return seed, struct.unpack_from(f"<{count}q", rest), rest[8 * count :]
