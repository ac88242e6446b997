"""The protocol of files; its rules are in this room's README."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

BLOCK_BYTES = 4096  # offsets, lengths and addresses of direct I/O are multiples of this

# "no room": the disk, a quota, or the largest file that this process may write.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Mode = Literal["plain", "direct", "durable"]


class File(Protocol):
    """An open file. All calls raise OSError."""

    direct: bool  # the page cache is bypassed: writes must be aligned to BLOCK_BYTES
    syncs_writes: bool  # what `write` wrote is durable when it returns

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes from `offset`; fewer than `nbytes` only at the end of the file."""

    def read_into(self, offset: int, memory: memoryview) -> int:
        """Fill `memory` from `offset` without a copy, of a file in mode "plain"; the bytes there were."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`."""

    def write_all(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Write buffers one after the other, in one call where it can be done."""

    def sync(self) -> None:
        """Return when everything written is durable."""

    def reserve(self, nbytes: int) -> None:
        """Make the file at least `nbytes` long, zeros where nothing was written, and take the space now."""

    def truncate(self, nbytes: int) -> None:
        """Cut the file to `nbytes`."""

    def size(self) -> int:
        """Bytes in the file."""

    def next_data(self, offset: int) -> int:
        """The first byte at or after `offset` that something may have been written to; the size if there is none."""

    def is_shared(self) -> bool:
        """Whether another name or another open descriptor leads to this file, or nobody can tell."""

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""


class Files(Protocol):
    """A directory tree. All calls raise OSError."""

    def open(self, path: str, *, create: bool = False, mode: Mode = "plain") -> File:
        """Open for reading and writing. With `create`, make the file, or take the one there is."""

    def names(self, directory: str) -> list[str]:
        """Sorted names in a directory; none if it does not exist."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or a directory of this name."""

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it; one that exists is left as it is."""

    def rename(self, old: str, new: str) -> None:
        """Give a file or a directory another name; a file that had it is replaced."""

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it; nothing if it does not exist."""

    def sync_directory(self, path: str) -> None:
        """Return when the names in this directory are durable."""

    def free_bytes(self) -> int:
        """Room left on the disk."""

    def lock(self, path: str) -> Callable[[], None]:
        """Hold a lock until the returned function is called or the process ends; BlockingIOError if it is held."""


def is_full(error: OSError) -> bool:
    """Whether an operation failed for lack of room, so that it can succeed later."""
    return error.errno in FULL


def align_up(nbytes: int) -> int:
    """The next multiple of BLOCK_BYTES."""
    return -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES


def aligned_memory(nbytes: int) -> memoryview:
    """Zeroed memory, writable, that starts on a page: direct I/O takes it."""
    return memoryview(mmap.mmap(-1, max(align_up(nbytes), BLOCK_BYTES)))
