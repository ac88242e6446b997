"""Memory that the processes of one host share: parameters, optimizer state and every lane's gradients lie in it.

It is a file without a name (memfd), reserved whole when it is made: a machine that cannot hold it says so then, and
the memory is given back when the last process that maps it is gone, however it went.
"""

from __future__ import annotations

import errno
import mmap
import os

import torch

from gradbase.common.errors import StoreError
from gradbase.common.units import format_bytes


class Slab:
    """`nbytes` bytes of shared memory behind the descriptor `fd`.

    Views keep the mapping alive; every one has a storage of its own, because the capture of a step keeps two tensors
    apart only when they share no storage.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.nbytes = os.fstat(fd).st_size
        self._mapping = mmap.mmap(fd, self.nbytes)

    @classmethod
    def create(cls, nbytes: int) -> Slab:
        """New memory, all zero. Raises StoreError when the machine has not that much."""
        fd = os.memfd_create("gradbase-slab", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise
            raise StoreError(
                f"the machine has no {format_bytes(nbytes)} of shared memory for parameters and gradients",
                "every worker adds one set of gradients: use fewer workers, or a smaller model",
            ) from error
        return cls(fd)

    @classmethod
    def open(cls, path: str) -> Slab:
        """The memory of another process on this host, by its `path`. Raises OSError where that leads nowhere."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    @property
    def path(self) -> str:
        """Where another process of the same user on this host can open it, while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def tensor(self, offset: int, dtype: torch.dtype, numel: int) -> torch.Tensor:
        """Elements at a byte offset, [numel], as a tensor with a storage of its own."""
        if not numel:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._mapping, dtype=dtype, count=numel, offset=offset)

    def words(self, offset: int, count: int) -> memoryview:
        """Signed 64-bit words at a byte offset that 8 divides. One word is stored whole or not at all."""
        return memoryview(self._mapping)[offset : offset + 8 * count].cast("q")

    def close(self) -> None:
        """Close the descriptor; the memory stays while views of it do."""
        os.close(self.fd)
