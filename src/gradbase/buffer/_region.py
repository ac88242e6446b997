"""Address space of which only what is touched takes memory, for kernels that ask for more than they use."""

from __future__ import annotations

import mmap
from array import array
from pathlib import Path

from gradbase.buffer._arena import Arena

Runs = tuple[tuple[int, int], ...]  # (offset, bytes), ascending, apart

_PAGEMAP = Path("/proc/self/pagemap")
_ENTRY_BYTES = 8
_IN_MEMORY_OR_SWAP = 3 << 62  # proc_pid_pagemap(5): bits 63 and 62
_MADV_NOHUGEPAGE = getattr(mmap, "MADV_NOHUGEPAGE", None)


class Region(Arena):
    """`nbytes` bytes of small pages that become memory when they are touched, and tells which were (Linux)."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes, prefault=False)
        if _MADV_NOHUGEPAGE is not None:
            self._mapping(0, nbytes).madvise(_MADV_NOHUGEPAGE)

    def clear(self) -> None:
        """Give all pages back: they read as zeros and count as untouched."""
        self._mapping(0, self.nbytes).madvise(mmap.MADV_DONTNEED)

    def touched(self) -> Runs:
        """What was read or written since the last `clear`, in whole pages; all of it where the system does not tell."""
        pages = -(-self.nbytes // mmap.PAGESIZE)
        entries = _pagemap(self.address // mmap.PAGESIZE, pages)
        if len(entries) < pages:
            return ((0, self.nbytes),)
        marks = [entry & _IN_MEMORY_OR_SWAP != 0 for entry in entries]
        edges = [page for page in range(pages + 1) if (page and marks[page - 1]) != (page < pages and marks[page])]
        ends = [min(page * mmap.PAGESIZE, self.nbytes) for page in edges]
        return tuple((start, end - start) for start, end in zip(ends[::2], ends[1::2], strict=True))


def _pagemap(first: int, count: int) -> array[int]:
    try:
        with _PAGEMAP.open("rb", buffering=0) as file:
            file.seek(first * _ENTRY_BYTES)
            return array("Q", file.read(count * _ENTRY_BYTES))
    except OSError:
        return array("Q")


def total_bytes(runs: Runs) -> int:
    """Bytes of runs that lie apart."""
    return sum(nbytes for _, nbytes in runs)


def union(*several: Runs) -> Runs:
    """What any of them covers, as runs that lie apart."""
    merged: list[tuple[int, int]] = []
    for offset, nbytes in sorted(run for runs in several for run in runs):
        if merged and offset <= sum(merged[-1]):
            start = merged[-1][0]
            merged[-1] = (start, max(sum(merged[-1]), offset + nbytes) - start)
        else:
            merged.append((offset, nbytes))
    return tuple(merged)
