"""The arena: the one block of memory that a physical plan lays its frames in.

It is allocated once and lives as long as the compiled step. Touching a page for the first time costs several
times what a kernel needs to fill it, so the pages are touched here (`prefault`) and never in the step.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from gradbase.common.errors import PageError
from gradbase.common.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Writes every page of a range without the caller touching it (Linux 5.14); the mmap module does not name it.
_MADV_POPULATE_WRITE = 23
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_MADV_DONTFORK = getattr(mmap, "MADV_DONTFORK", None)


class FrameSource(Protocol):
    """What the executor needs of an arena, on any device. Offsets and sizes in bytes."""

    nbytes: int

    @property
    def address(self) -> int: ...

    def tensor(
        self, offset: int, dtype: str | torch.dtype, shape: Sequence[int], strides: Sequence[int]
    ) -> torch.Tensor: ...

    def storage(self, offset: int, nbytes: int) -> torch.UntypedStorage | torch.Tensor: ...

    def memory(self, offset: int, nbytes: int) -> memoryview | torch.Tensor: ...

    def close(self) -> None: ...


class Arena:
    """`nbytes` bytes of page-aligned anonymous memory on the CPU.

    `prefault` touches every page now; without it the first step pays. Where the kernel can it uses pages of 2 MiB:
    direct I/O looks up and holds every page of a transfer, beside the kernels that compute. The resident size stays
    `nbytes`, as huge pages do not reach over a mapping's ends.

    Every tensor, storage and memoryview handed out keeps the mapping alive, so `close` is safe at any time:
    the memory goes back to the system when the last of them is gone.

    Forked children do not get the mapping: sharing it would make every page of it copy on the parent's next
    write (twice the memory, in the middle of a step), and direct I/O beside such copies can lose data.

    Raises PageError when the system does not give the memory.
    """

    def __init__(self, nbytes: int, *, prefault: bool = True) -> None:
        assert nbytes >= 0
        self.nbytes = nbytes
        self._map: mmap.mmap | None = _map(max(nbytes, 1))
        if _MADV_HUGEPAGE is not None:
            _ask_for_huge_pages(self._map)
        if _MADV_DONTFORK is not None:
            self._map.madvise(_MADV_DONTFORK)
        if prefault:
            _prefault(self._map, nbytes)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @property
    def address(self) -> int:
        """The address of byte 0, a multiple of the system's page size."""
        return self._address

    @property
    def closed(self) -> bool:
        return self._map is None

    def memory(self, offset: int, nbytes: int) -> memoryview:
        """A writable view of bytes [offset, offset + nbytes), for a pager."""
        return memoryview(self._mapping(offset, nbytes))[offset : offset + nbytes]

    def storage(self, offset: int, nbytes: int) -> torch.UntypedStorage:
        """A storage of exactly these bytes, to set several windows of one frame on.

        Exact, so that a kernel that resizes its result fails instead of writing over the next frame, and so
        that saving one result does not save the arena.
        """
        import torch

        mapping = self._mapping(offset, nbytes)
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        return torch.frombuffer(mapping, dtype=torch.uint8, count=nbytes, offset=offset).untyped_storage()

    def tensor(
        self, offset: int, dtype: str | torch.dtype, shape: Sequence[int], strides: Sequence[int]
    ) -> torch.Tensor:
        """A window onto the arena: `shape` and `strides` in elements, `offset` in bytes, nothing copied."""
        import torch

        kind = torch_dtype(dtype)
        assert offset % kind.itemsize == 0, "a frame starts on a multiple of its element size"
        frame = self.storage(offset, extent(shape, strides) * kind.itemsize)
        return torch.empty(0, dtype=kind).set_(frame, 0, tuple(shape), tuple(strides))

    def close(self) -> None:
        """Give the memory back, at once or when the last view of it is gone. Calling it twice is fine."""
        self._map = None

    def _mapping(self, offset: int, nbytes: int) -> mmap.mmap:
        assert self._map is not None, "the arena is closed"
        assert offset >= 0 and nbytes >= 0 and offset + nbytes <= self.nbytes, "the frame lies outside the arena"
        return self._map


class DeviceArena:
    """`nbytes` bytes on an accelerator ("cuda", "cuda:1"): the same protocol, with uint8 tensors as memory.

    torch gives no way to split a device storage without private calls, so all frames share one storage here.
    """

    def __init__(self, nbytes: int, device: str | torch.device) -> None:
        import torch

        self.nbytes = nbytes
        self._bytes: torch.Tensor | None = torch.empty(nbytes, dtype=torch.uint8, device=device)

    @property
    def address(self) -> int:
        return self._whole().data_ptr()

    @property
    def closed(self) -> bool:
        return self._bytes is None

    def memory(self, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes [offset, offset + nbytes) as a uint8 tensor, for a pager."""
        assert offset >= 0 and offset + nbytes <= self.nbytes, "the frame lies outside the arena"
        return self._whole()[offset : offset + nbytes]

    storage = memory

    def tensor(
        self, offset: int, dtype: str | torch.dtype, shape: Sequence[int], strides: Sequence[int]
    ) -> torch.Tensor:
        """A window onto the arena: `shape` and `strides` in elements, `offset` in bytes, nothing copied."""
        kind = torch_dtype(dtype)
        assert offset % kind.itemsize == 0, "a frame starts on a multiple of its element size"
        frame = self.memory(offset, extent(shape, strides) * kind.itemsize)
        return frame.view(kind).as_strided(tuple(shape), tuple(strides))

    def close(self) -> None:
        self._bytes = None

    def _whole(self) -> torch.Tensor:
        assert self._bytes is not None, "the arena is closed"
        return self._bytes


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one of a window, both included; 0 for an empty one."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """"float32" -> torch.float32; a dtype stays what it is."""
    import torch

    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert isinstance(kind, torch.dtype)
    return kind


def _map(nbytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise _no_memory(nbytes, error) from error


def _ask_for_huge_pages(mapping: mmap.mmap) -> None:
    with suppress(OSError):  # a kernel without them
        mapping.madvise(_MADV_HUGEPAGE)


def _prefault(mapping: mmap.mmap, nbytes: int) -> None:
    try:
        mapping.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _no_memory(nbytes, error) from error
        _touch(mapping)  # an older kernel, or not Linux


def _touch(mapping: mmap.mmap) -> None:
    zero = b"\0"
    for position in range(0, len(mapping), mmap.PAGESIZE):
        mapping[position : position + 1] = zero


def _no_memory(nbytes: int, error: Exception) -> PageError:
    return PageError(
        f"the system does not give {format_bytes(nbytes)} of memory for the arena ({error})",
        "compile with a smaller memory budget, or free memory on this machine",
    )
