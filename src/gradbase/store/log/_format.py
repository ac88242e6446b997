"""The bytes of segments, groups and records; the README of this room is the definition."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradbase.store.files import BLOCK_BYTES, align_up

VERSION = 1
COORDINATOR = 0xFFFFFFFF
PAYLOAD_BYTES_MAX = (1 << 31) - 1

_SEGMENT = struct.Struct("<8sII16sQI8xI")
_GROUP = struct.Struct("<4sIQQII")
_RECORD = struct.Struct("<IIQQIIIHBB")
_SEGMENT_MAGIC, _GROUP_MAGIC = b"GRADBLOG", b"GRUP"
_RECORD_LEAD = 8  # length and CRC

RECORD_BYTES = _RECORD.size
GROUP_BYTES = _GROUP.size

Buffer = bytes | bytearray | memoryview


class Malformed(ValueError):
    """Bytes are not what the format says; the message tells how."""


@dataclass(frozen=True, slots=True)
class Record:
    """One log record. `payload` is one buffer or several that follow each other, in bytes.

    kind 1 to 4; codec 0 to 255; worker below 65536; term, incarnation, session below 2^32; sequence, LSN below 2^64.
    """

    lsn: int
    kind: int
    payload: Buffer | Sequence[Buffer] = b""
    codec: int = 0
    term: int = 0
    incarnation: int = 0
    worker: int = 0
    session: int = 0
    sequence: int = 0

    @property
    def parts(self) -> Sequence[Buffer]:
        return (self.payload,) if isinstance(self.payload, (bytes, bytearray, memoryview)) else self.payload

    @property
    def nbytes(self) -> int:
        """Bytes in the log."""
        return RECORD_BYTES + sum(memoryview(part).nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Who a segment belongs to. `shard` is COORDINATOR for the coordinator's."""

    store_id: bytes
    shard: int
    incarnation: int
    first_lsn: int

    def pack(self) -> bytes:
        body = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, self.shard, self.store_id, self.first_lsn, self.incarnation, 0)[
            :-4
        ]
        return body + struct.pack("<I", zlib.crc32(body))

    @property
    def crc(self) -> int:
        return int.from_bytes(self.pack()[-4:], "little")

    @staticmethod
    def unpack(data: bytes) -> SegmentHeader:
        """Raises Malformed."""
        if len(data) < _SEGMENT.size:
            raise Malformed(f"the header has {len(data)} bytes of {_SEGMENT.size}")
        magic, version, shard, store_id, first_lsn, incarnation, crc = _SEGMENT.unpack_from(data)
        if magic != _SEGMENT_MAGIC:
            raise Malformed("it does not start with GRADBLOG")
        if crc != zlib.crc32(data[: _SEGMENT.size - 4]):
            raise Malformed("the checksum of the header is wrong")
        if version != VERSION:
            raise Malformed(f"its format is of version {version}, this program reads version {VERSION}")
        return SegmentHeader(store_id, shard, incarnation, first_lsn)


@dataclass(frozen=True, slots=True)
class GroupHeader:
    """What one write holds: `count` records of `nbytes` together; an end mark if there are none."""

    count: int
    first_lsn: int
    nbytes: int
    segment_crc: int

    @property
    def padded_bytes(self) -> int:
        """Bytes that the group takes in its file."""
        return align_up(GROUP_BYTES + self.nbytes)

    def pack(self) -> bytes:
        body = _GROUP.pack(_GROUP_MAGIC, self.count, self.first_lsn, self.nbytes, self.segment_crc, 0)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))

    @staticmethod
    def unpack(data: Buffer, offset: int = 0) -> GroupHeader:
        """Raises Malformed."""
        head = bytes(data[offset : offset + GROUP_BYTES])
        if len(head) < GROUP_BYTES or head[:4] != _GROUP_MAGIC:
            raise Malformed("no group starts here")
        _, count, first_lsn, nbytes, segment_crc, crc = _GROUP.unpack(head)
        if crc != zlib.crc32(head[:-4]):
            raise Malformed("the checksum of the group's header is wrong")
        return GroupHeader(count, first_lsn, nbytes, segment_crc)


def pack_record(record: Record, out: memoryview) -> int:
    """Write a record at the start of `out`; the bytes it took. Ranges of fields are the caller's promise."""
    parts = [memoryview(part).cast("B") for part in record.parts]
    length = sum(map(len, parts))
    head = _RECORD.pack(
        length, 0, record.lsn, record.sequence, record.term, record.incarnation, record.session, record.worker,
        record.kind, record.codec,
    )  # fmt: skip
    position, crc = RECORD_BYTES, _head_crc(head)
    for part in parts:
        out[position : position + len(part)] = part
        crc = zlib.crc32(part, crc)
        position += len(part)
    out[:RECORD_BYTES] = head[:4] + crc.to_bytes(4, "little") + head[_RECORD_LEAD:]
    return position


def unpack_records(header: GroupHeader, body: bytes) -> Iterator[Record]:
    """The records of a group, each checked. Raises Malformed at the first that is wrong."""
    position = 0
    for lsn in range(header.first_lsn, header.first_lsn + header.count):
        record, nbytes = _unpack_record(body, position)
        if record.lsn != lsn:
            raise Malformed(f"record {record.lsn} stands where {lsn} belongs")
        yield record
        position += nbytes
    if position != header.nbytes:
        raise Malformed(f"the records take {position} bytes, their group says {header.nbytes}")


def _unpack_record(body: bytes, position: int) -> tuple[Record, int]:
    if position + RECORD_BYTES > len(body):
        raise Malformed("a record goes past the end of its group")
    head = body[position : position + RECORD_BYTES]
    length, crc, lsn, sequence, term, incarnation, session, worker, kind, codec = _RECORD.unpack(head)
    start = position + RECORD_BYTES
    if length > len(body) - start:
        raise Malformed("a record goes past the end of its group")
    payload = memoryview(body)[start : start + length]
    if crc != zlib.crc32(payload, _head_crc(head)):
        raise Malformed("the checksum of a record is wrong")
    record = Record(lsn, kind, payload, codec, term, incarnation, worker, session, sequence)
    return record, RECORD_BYTES + length


def _head_crc(head: bytes) -> int:
    return zlib.crc32(head[:4], zlib.crc32(head[_RECORD_LEAD:]))


assert _SEGMENT.size == 56 and GROUP_BYTES == 32 and RECORD_BYTES == 40 and _SEGMENT.size <= BLOCK_BYTES
