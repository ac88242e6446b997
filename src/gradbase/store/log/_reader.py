"""Reading a log: which segments there are, their records, and how the log ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradbase.common.errors import DamageError
from gradbase.store.files import BLOCK_BYTES, File, Files, align_up
from gradbase.store.log._format import (
    GROUP_BYTES,
    GroupHeader,
    Malformed,
    Record,
    SegmentHeader,
    unpack_records,
)

SUFFIX = ".log"
_SCAN_BYTES = 1 << 20


@dataclass(frozen=True)
class Torn:
    """A write that the end of its process cut short. None of its records was acknowledged."""

    path: str
    offset: int
    lsn: int
    nbytes: int


@dataclass(frozen=True)
class Segment:
    """A segment's file and header."""

    path: str
    header: SegmentHeader

    @property
    def first_lsn(self) -> int:
        return self.header.first_lsn


@dataclass(frozen=True)
class Group:
    """A whole group: its place, its bytes there, and its records."""

    offset: int
    padded_bytes: int
    records: list[Record]
    closes: bool


def segment_path(directory: str, first_lsn: int) -> str:
    return f"{directory}/{first_lsn:020d}{SUFFIX}"


def list_segments(files: Files, directory: str) -> list[Segment]:
    """All segments in order, headers checked. Raises DamageError for one that is damaged or belongs elsewhere."""
    names = [name for name in files.names(directory) if name.endswith(SUFFIX)]
    segments = [_open_segment(files, f"{directory}/{name}") for name in names]
    for name, segment in zip(names, segments, strict=True):
        if name != f"{segment.first_lsn:020d}{SUFFIX}":
            raise damage(segment.path, 0, segment.first_lsn, "the name of the file is not its first LSN")
    return segments


def has_segments(files: Files, directory: str) -> bool:
    """Whether there is a log, looking at names alone."""
    return any(name.endswith(SUFFIX) for name in files.names(directory))


class LogReader:
    """The records of a log with LSN above `after` (None: all that are there), in order: iterate it, once.

    When the iteration has ended, `next_lsn` is the LSN that follows, `closed` whether the log was closed in order,
    `torn` what was cut short at its end (or None), and `end` the file and offset behind the last whole group.

    Raises DamageError where the log is damaged: there, and not before, so that what lies before is at hand.
    """

    def __init__(self, files: Files, directory: str, *, after: int | None = 0) -> None:
        self._files = files
        self.segments = list_segments(files, directory)
        if after is None:
            after = self.segments[0].first_lsn - 1 if self.segments else 0
        self._after = after
        self.torn: Torn | None = None
        self.closed = False
        self.end: tuple[str, int] | None = None
        self.next_lsn = self.segments[0].first_lsn if self.segments else after + 1
        if self.next_lsn > after + 1:
            path = self.segments[0].path
            raise damage(path, 0, after + 1, f"the log begins at LSN {self.next_lsn}: records before it are missing")

    def __iter__(self) -> Iterator[Record]:
        for segment in self._needed():
            self.next_lsn = segment.first_lsn
            for group in self._groups(segment):
                yield from (record for record in group.records if record.lsn > self._after)

    def _needed(self) -> list[Segment]:
        """Without the segments that end at or before `after`; at least the last one, which tells how the log ends."""
        firsts = [segment.first_lsn for segment in self.segments[1:]]
        skipped = sum(1 for first in firsts if first <= self._after + 1)
        return self.segments[skipped:]

    def _groups(self, segment: Segment) -> Iterator[Group]:
        file = self._files.open(segment.path)
        try:
            offset, size, self.closed = BLOCK_BYTES, file.size(), False
            while True:
                self.end = (segment.path, offset)
                try:
                    group = read_group(file, offset, size, segment.header, self.next_lsn)
                except Malformed as why:
                    self._ends(segment, file, offset, size, str(why))
                    return
                offset += group.padded_bytes
                self.next_lsn += len(group.records)
                self.closed = group.closes
                yield group
        finally:
            file.close()

    def _ends(self, segment: Segment, file: File, offset: int, size: int, why: str) -> None:
        """Tell the end of a segment from damage, as the README says."""
        following = [other for other in self.segments if other.first_lsn > segment.first_lsn]
        if following:
            if following[0].first_lsn != self.next_lsn:
                raise damage(segment.path, offset, self.next_lsn, why)
            return
        end = _end_of_writing(file, offset, size, segment.header.crc)
        if end is None:
            raise damage(segment.path, offset, self.next_lsn, why)
        if end > offset:
            self.torn = Torn(segment.path, offset, self.next_lsn, end - offset)


def read_group(file: File, offset: int, size: int, segment: SegmentHeader, lsn: int) -> Group:
    """The group at `offset`, if it is whole and continues at `lsn`. Raises Malformed."""
    header = GroupHeader.unpack(file.read(offset, GROUP_BYTES))
    if header.segment_crc != segment.crc:
        raise Malformed("the group belongs to another segment")
    if header.first_lsn != lsn:
        raise Malformed(f"the group begins with record {header.first_lsn}, not {lsn}")
    if offset + GROUP_BYTES + header.nbytes > size:
        raise Malformed("the group goes past the end of the file")
    body = file.read(offset + GROUP_BYTES, header.nbytes)
    records = list(unpack_records(header, body))
    return Group(offset, header.padded_bytes, records, closes=header.count == 0)


def damage(path: str, offset: int, lsn: int, why: str) -> DamageError:
    """What is said of a log whose middle is not as it was written."""
    return DamageError(
        f"the log is damaged at LSN {lsn}: {path}, byte {offset}: {why}",
        f"records before LSN {lsn} are whole; later ones were acknowledged and cannot be skipped",
        "restore the file from a copy, or begin a new store from the parameters.safetensors of a checkpoint",
        path=path,
        offset=offset,
        lsn=lsn,
    )


def _open_segment(files: Files, path: str) -> Segment:
    file = files.open(path)
    try:
        return Segment(path, SegmentHeader.unpack(file.read(0, BLOCK_BYTES)))
    except Malformed as why:
        first_lsn = path.rsplit("/", 1)[-1].removesuffix(SUFFIX).lstrip("0") or "0"
        raise damage(path, 0, int(first_lsn) if first_lsn.isdecimal() else 0, str(why)) from why
    finally:
        file.close()


def _end_of_writing(file: File, offset: int, size: int, segment_crc: int) -> int | None:
    """Behind the last block from `offset` on that is not zero.

    None if behind `offset` some block starts with a header of this segment: it was written after what is at `offset`.
    """
    end = offset
    for start, data in _written(file, offset, size):
        padded = np.frombuffer(data.ljust(align_up(len(data)), b"\0"), np.uint64)
        blocks = padded.reshape(-1, BLOCK_BYTES // 8)
        if not padded.any():
            continue
        for block in np.flatnonzero(blocks.any(axis=1)).tolist():
            position = block * BLOCK_BYTES
            if start + position > offset and _is_header(data, position, segment_crc):
                return None
            end = start + position + BLOCK_BYTES
    return end


def _written(file: File, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Whole blocks from `offset` on, in parts, without space that was reserved and never written."""
    while (offset := file.next_data(offset)) < size:
        offset -= offset % BLOCK_BYTES
        data = file.read(offset, min(_SCAN_BYTES, size - offset))
        yield offset, data
        offset += len(data)


def _is_header(data: bytes, position: int, segment_crc: int) -> bool:
    try:
        return GroupHeader.unpack(data, position).segment_crc == segment_crc
    except Malformed:
        return False
