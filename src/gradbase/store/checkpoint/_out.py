"""Writing ranges of a data file, past the page cache where it can be done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradbase.store.checkpoint._checksum import Bytes
from gradbase.store.checkpoint._safetensors import DataFile
from gradbase.store.files import BLOCK_BYTES, Files, align_up, aligned_memory

STAGE_BYTES = 16 << 20  # small writes take several times the processor time of large ones
_DIRECT_BYTES_MIN = 64 << 10


class Out:
    """A data file of a checkpoint, open for writing. Raises OSError.

    Whole blocks are written directly. The ends of a range that are not whole blocks, and small ranges, go through the
    page cache: their blocks may hold bytes that another owner writes. `stage` is memory from `new_stage`.
    """

    def __init__(self, files: Files, path: str, data_file: DataFile, stage: Bytes) -> None:
        self._plain = files.open(path, create=True)
        self._direct = files.open(path, mode="direct")
        self._stage = stage
        try:
            self._plain.reserve(data_file.nbytes)
            if self._plain.size() > data_file.nbytes:
                self._plain.truncate(data_file.nbytes)
            self._plain.write(0, memoryview(data_file.header))
        except OSError:
            self.close()
            raise

    def stage(self, start: int, end: int) -> Bytes:
        """Memory for the bytes [start, end) of the file, placed so that whole blocks can be written from it."""
        lead, nbytes = start % BLOCK_BYTES, end - start
        if lead + nbytes > len(self._stage):
            self._stage = touched(lead + nbytes)
        return self._stage[lead : lead + nbytes]

    def write(self, start: int, data: Bytes) -> None:
        """Write staged bytes at `start`."""
        end = start + len(data)
        first, last = align_up(start), end - end % BLOCK_BYTES
        if not self._direct.direct or last - first < _DIRECT_BYTES_MIN:
            self._plain.write(start, data.data)
            return
        if start < first:
            self._plain.write(start, data[: first - start].data)
        self._direct.write(first, data[first - start : last - start].data)
        if last < end:
            self._plain.write(last, data[last - start :].data)

    def goes_straight(self, nbytes: int) -> bool:
        """Whether so many aligned bytes may be written from where they lie."""
        return self._direct.direct and nbytes >= _DIRECT_BYTES_MIN

    def write_straight(self, start: int, parts: Sequence[Bytes]) -> None:
        """Write aligned memory at the aligned offset `start`, without staging it."""
        self._direct.write_all(start, [part.data for part in parts])

    def sync(self) -> None:
        """Return when everything is durable."""
        self._direct.sync()
        self._plain.sync()

    def close(self) -> None:
        self._direct.close()
        self._plain.close()

    def __enter__(self) -> Out:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_stage(nbytes: int) -> Bytes:
    """Staging memory for ranges of files of which no more than `nbytes` are written."""
    return touched(min(nbytes, STAGE_BYTES) + 2 * BLOCK_BYTES)


def touched(nbytes: int) -> Bytes:
    """Memory that the system has committed: a first touch in the middle of training would cost ten times the copy."""
    memory: Bytes = np.frombuffer(aligned_memory(nbytes), np.uint8)[:nbytes]
    memory[::BLOCK_BYTES] = 0
    return memory
