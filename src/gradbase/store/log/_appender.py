"""Writing a log, one durable group at a time. No threads: the caller's call returns when the records are durable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from gradbase.common.errors import StoreError
from gradbase.store.files import BLOCK_BYTES, File, Files, Mode, aligned_memory, is_full
from gradbase.store.log._format import (
    GROUP_BYTES,
    PAYLOAD_BYTES_MAX,
    GroupHeader,
    Record,
    SegmentHeader,
    pack_record,
)
from gradbase.store.log._reader import LogReader, Segment, list_segments, segment_path

SEGMENT_BYTES = 16 << 20
_FIRST_SEGMENT_BYTES = 1 << 20
_SPARE = "spare.new"
_BUFFER_BYTES_MIN = 64 << 10


class DiskFullError(StoreError):
    """There is no room for more of the log. What is durable stays so; append the rest again when there is room."""

    code = "disk-full"


class Appender:
    """The writing end of a log; made by `open_log`.

    `next_lsn` is the LSN of the record to append next, all before it are durable. `incarnation` is this opening's
    number. `warning` tells of a disk that has no room for a further segment while the current one still has.

    The space of a segment is taken before anything is written there, so that a sync has no blocks to add to a file. So
    that a short job takes little, its first segment is small; every next one is twice as large, up to `segment_bytes`.
    """

    def __init__(
        self,
        files: Files,
        directory: str,
        header: SegmentHeader,
        older: Sequence[Segment],
        *,
        segment_bytes: int = SEGMENT_BYTES,
        mode: Mode = "durable",
        unlock: Callable[[], None] = lambda: None,
    ) -> None:
        assert segment_bytes % BLOCK_BYTES == 0 and segment_bytes > BLOCK_BYTES
        self._files, self._directory, self._mode = files, directory, mode
        self._segment_bytes_max, self._unlock = segment_bytes, unlock
        self._segment_bytes = min(_FIRST_SEGMENT_BYTES, segment_bytes)  # of the next one
        self._segments = list(older)
        self._buffer = aligned_memory(_BUFFER_BYTES_MIN)
        self._broken: StoreError | None = None
        self._file: File | None = None
        self._spare: tuple[File, int] | None = None
        self.warning: DiskFullError | None = None
        self.incarnation = header.incarnation
        self.next_lsn = header.first_lsn
        self._header = header
        self._guarded(lambda: self._begin_segment(0))

    @property
    def first_lsn(self) -> int:
        """The oldest LSN that is still in the log."""
        return self._segments[0].first_lsn

    @property
    def nbytes(self) -> int:
        """Bytes written to the current segment."""
        return self._offset

    def append(self, records: Sequence[Record]) -> None:
        """Write records as one group and return when they are durable.

        Their LSNs continue the log. Raises DiskFullError, after which the same call may be repeated, and StoreError
        after which nothing can be appended any more. Neither moves `next_lsn`.
        """
        self._check(records)
        if records:
            self._write_group(records)
            self.next_lsn += len(records)

    def truncate(self, lsn: int) -> None:
        """Forget records up to `lsn`, as far as whole segments go; they must be in a durable checkpoint."""
        while len(self._segments) > 1 and self._segments[1].first_lsn <= lsn + 1:
            self._files.remove(self._segments[0].path)
            del self._segments[0]
        self._files.sync_directory(self._directory)

    def prepare(self) -> None:
        """Reserve the next segment if the current one is half full. What fails is kept in `warning`."""
        if self._spare is not None or self._offset * 2 < self._end:
            return
        try:
            self._spare = self._reserve(self._segment_bytes)
            self.warning = None
        except OSError as error:
            self.warning = self._full(error, "the next segment")

    def close(self) -> None:
        """Mark the log as closed in order and give it back; a second call does nothing."""
        if self._file is None:
            return
        try:
            if self._broken is None:
                with contextlib.suppress(StoreError):  # without the mark the end is merely less certain
                    self._write_group(())
        finally:
            self._leave_segment()
            self._file = None
            self._drop_spare()
            self._unlock()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, records: Sequence[Record]) -> None:
        if self._broken is not None:
            raise self._broken
        assert self._file is not None, "the log is closed"
        for lsn, record in enumerate(records, start=self.next_lsn):
            assert record.lsn == lsn, f"record {record.lsn} follows {lsn - 1}"
            assert record.nbytes <= PAYLOAD_BYTES_MAX, "a record is larger than the format allows"

    def _write_group(self, records: Sequence[Record]) -> None:
        header = GroupHeader(len(records), self.next_lsn, sum(record.nbytes for record in records), self._header.crc)
        self._guarded(lambda: self._place(header, records))

    def _place(self, header: GroupHeader, records: Sequence[Record]) -> None:
        if self._offset + header.padded_bytes > self._end:
            self._begin_segment(header.padded_bytes)
            header = GroupHeader(header.count, header.first_lsn, header.nbytes, self._header.crc)
        assert self._file is not None
        self._file.write(self._offset, self._packed(header, records))
        if not self._file.syncs_writes:
            self._file.sync()
        self._offset += header.padded_bytes

    def _packed(self, header: GroupHeader, records: Sequence[Record]) -> memoryview:
        if header.padded_bytes > len(self._buffer):
            self._buffer = aligned_memory(header.padded_bytes)
        out = self._buffer[: header.padded_bytes]
        out[:GROUP_BYTES] = header.pack()
        position = GROUP_BYTES
        for record in records:
            position += pack_record(record, out[position:])
        out[position:] = bytes(len(out) - position)
        return out

    def _begin_segment(self, group_bytes: int) -> None:
        """Go on in a new segment that has room for a group of this size."""
        wanted = max(self._segment_bytes, BLOCK_BYTES + group_bytes)
        file, end = self._take_spare(wanted)
        header = SegmentHeader(self._header.store_id, self._header.shard, self.incarnation, self.next_lsn)
        block = aligned_memory(BLOCK_BYTES)
        packed = header.pack()
        block[: len(packed)] = packed
        path = segment_path(self._directory, self.next_lsn)
        try:
            file.write(0, block)
            file.sync()
            self._files.rename(f"{self._directory}/{_SPARE}", path)
            self._files.sync_directory(self._directory)
        except OSError:
            file.close()
            raise
        self._leave_segment()
        self._segment_bytes = min(2 * self._segment_bytes, self._segment_bytes_max)
        self._file, self._offset, self._end, self._header = file, BLOCK_BYTES, end, header
        self._segments = [segment for segment in self._segments if segment.path != path] + [Segment(path, header)]

    def _leave_segment(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # gives reserved space back; nothing depends on it
                self._file.truncate(self._offset)
            self._file.close()

    def _take_spare(self, nbytes: int) -> tuple[File, int]:
        if self._spare is not None and self._spare[1] >= nbytes:
            spare, self._spare = self._spare, None
            return spare
        self._drop_spare()
        return self._reserve(nbytes)

    def _reserve(self, nbytes: int) -> tuple[File, int]:
        path = f"{self._directory}/{_SPARE}"
        self._files.remove(path)
        file = self._files.open(path, create=True, mode=self._mode)
        try:
            file.reserve(nbytes)
            file.sync()
        except OSError:
            file.close()
            self._files.remove(path)  # a file that got half of the room would keep it from others
            raise
        return file, nbytes

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare[0].close()
            self._spare = None
            self._files.remove(f"{self._directory}/{_SPARE}")

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run what writes, and turn what the system says into what the caller can do about it."""
        try:
            action()
        except OSError as error:
            if is_full(error):
                raise self._full(error, f"LSN {self.next_lsn}") from error
            self._broken = StoreError(
                f"cannot write the log in {self._directory}: {error.strerror} (errno {error.errno})",
                f"records before LSN {self.next_lsn} are durable",
                "check the disk, then resume: opening the log again finds out what it holds",
            )
            raise self._broken from error

    def _full(self, error: OSError, what: str) -> DiskFullError:
        free = self._files.free_bytes()
        return DiskFullError(
            f"no room for {what} of the log in {self._directory}: {error.strerror} (errno {error.errno})",
            f"records before LSN {self.next_lsn} are durable; {free} bytes are free",
            "free space or raise the limit: the log goes on where it stands",
        )


def open_log(
    files: Files,
    directory: str,
    *,
    store_id: bytes,
    shard: int,
    segment_bytes: int = SEGMENT_BYTES,
    mode: Mode = "durable",
    after: int = 0,
) -> tuple[Appender, LogReader]:
    """Open a log for writing, making it if it is not there; cut a torn tail.

    store_id: 16 bytes. shard: its number, or COORDINATOR. after: all records up to this LSN are in a checkpoint; an
    empty log begins after it. The appender goes on behind the last whole group, in a new segment. The reader has read
    the last segment, and its `torn` says what was cut; to replay, make a `LogReader` of the same directory.

    Raises DamageError, StoreError if another process has the log open or it is another store's, DiskFullError.
    """
    assert len(store_id) == 16
    files.make_directory(directory)
    unlock = _locked(files, directory)
    try:
        reader = _read_tail(files, directory, after)
        for segment in reader.segments:
            check_owner(segment, store_id, shard)
        incarnation = max((segment.header.incarnation for segment in reader.segments), default=0) + 1
        header = SegmentHeader(store_id, shard, incarnation, max(reader.next_lsn, after + 1))
        appender = Appender(
            files, directory, header, reader.segments, segment_bytes=segment_bytes, mode=mode, unlock=unlock
        )
    except BaseException:
        unlock()
        raise
    _cut(files, reader)
    return appender, reader


def _read_tail(files: Files, directory: str, after: int) -> LogReader:
    """A reader that has read the last segment: where the log ends. What lies before is checked when it is replayed."""
    segments = list_segments(files, directory)
    reader = LogReader(files, directory, after=max(after, segments[-1].first_lsn - 1) if segments else after)
    for _ in reader:
        pass
    return reader


def check_owner(segment: Segment, store_id: bytes, shard: int) -> None:
    """Raise StoreError if a segment was put into another store's or shard's directory."""
    header = segment.header
    if header.store_id != store_id or header.shard != shard:
        raise StoreError(
            f"{segment.path} belongs to shard {header.shard} of store {header.store_id.hex()}",
            f"expected shard {shard} of store {store_id.hex()}",
            "move the file back to where it was made",
        )


def _locked(files: Files, directory: str) -> Callable[[], None]:
    try:
        return files.lock(f"{directory}/LOCK")
    except BlockingIOError as error:
        raise StoreError(
            f"another process has the log in {directory} open", "end it first, or wait until it has ended"
        ) from error


def _cut(files: Files, reader: LogReader) -> None:
    """Give the space behind the last whole group back. The new segment already says where the log goes on."""
    if reader.end is None:
        return
    path, offset = reader.end
    file = files.open(path)
    try:
        if SegmentHeader.unpack(file.read(0, BLOCK_BYTES)).first_lsn < reader.next_lsn:  # else it was replaced
            file.truncate(offset)
    finally:
        file.close()
