"""The page file: where frames rest while their memory is used for something else.

The file has no name from the moment it exists (O_TMPFILE, or unlinked at once), so the kernel frees it when
the process ends, however it ends. All its blocks are reserved when it is opened: a full disk is found while
planning, never in a step. It bypasses the page cache (O_DIRECT), because cached pages would be memory that
the budget does not see.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from gradbase.common.errors import PageError
from gradbase.common.units import format_bytes

ALIGNMENT_BYTES = 4096
# Large enough that a call's cost vanishes, small enough that a cancelled transfer ends soon.
BLOCK_BYTES = 4 << 20

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_O_TMPFILE = getattr(os, "O_TMPFILE", 0)
_BOUNCE_BYTES = 1 << 20
# open() answers one of these where O_TMPFILE or O_DIRECT is not known to the file system.
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.ENOENT})

Medium = Literal["disk", "memory"]
_Call = Callable[[int, Sequence[memoryview], int], int]


class System(Protocol):
    """The system calls a page file makes, so that a test can make them fail. `os` is one."""

    def pwritev(self, fd: int, buffers: Any, offset: int, /) -> int: ...
    def preadv(self, fd: int, buffers: Any, offset: int, /) -> int: ...


class PageFile:
    """`nbytes` bytes (rounded up to 4096) of unnamed, reserved space on the file system of `directory`.

    `direct` tells whether the page cache is bypassed; where the file system cannot (or with `direct=False`),
    plain I/O is used and the cache is told to drop what was moved. `medium` is "memory" where the directory is
    a RAM disk: paging there frees nothing, and whoever plans should say so.

    `read` and `write` may run on several threads at once, on ranges that do not overlap.

    Raises PageError when the directory cannot be used or has too little room, with the numbers.
    """

    alignment_bytes = ALIGNMENT_BYTES

    def __init__(
        self, directory: str | os.PathLike[str], nbytes: int, *, direct: bool = True, system: System = os
    ) -> None:
        assert nbytes >= 0
        self.directory = Path(directory)
        self.nbytes = align_up(nbytes)
        self._system = system
        self._bounce = threading.local()
        self._fd = _open_reserved(self.directory, self.nbytes)
        self.medium: Medium = _medium(self.directory)
        self.direct = direct and self._set_direct()

    def fileno(self) -> int:
        """The open file's descriptor, to map it."""
        return self._fd

    def write(self, offset: int, memory: memoryview) -> None:
        """Write all of `memory` at `offset` (a multiple of 4096). Raises PageError."""
        self._check(offset, memory)
        split = self._straight_bytes(memory)
        if split:
            self._move(self._system.pwritev, "write", offset, memory[:split])
        for position in range(split, len(memory), _BOUNCE_BYTES):
            self._write_bounced(offset + position, memory[position : position + _BOUNCE_BYTES])
        self._drop_cached(offset, len(memory))

    def read(self, offset: int, memory: memoryview) -> None:
        """Fill `memory` from `offset` (a multiple of 4096). Raises PageError."""
        self._check(offset, memory)
        split = self._straight_bytes(memory)
        if split:
            self._move(self._system.preadv, "read", offset, memory[:split])
        for position in range(split, len(memory), _BOUNCE_BYTES):
            self._read_bounced(offset + position, memory[position : position + _BOUNCE_BYTES])
        self._drop_cached(offset, len(memory))

    def close(self) -> None:
        """Free the space. Calling it twice is fine; transfers must have ended."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def _check(self, offset: int, memory: memoryview) -> None:
        assert self._fd >= 0, "the page file is closed"
        assert offset % ALIGNMENT_BYTES == 0, "a page starts on a multiple of 4096 in its file"
        assert offset >= 0 and offset + len(memory) <= self.nbytes, "the page lies outside its file"
        assert memory.itemsize == 1 and memory.c_contiguous

    def _straight_bytes(self, memory: memoryview) -> int:
        """How many leading bytes can be moved without a copy: O_DIRECT wants aligned addresses and sizes."""
        if not self.direct:
            return len(memory)
        if address_of(memory) % ALIGNMENT_BYTES:
            return 0
        return len(memory) - len(memory) % ALIGNMENT_BYTES

    def _write_bounced(self, offset: int, part: memoryview) -> None:
        bounce = self._bounce_memory(len(part))
        bounce[: len(part)] = part
        self._move(self._system.pwritev, "write", offset, bounce)

    def _read_bounced(self, offset: int, part: memoryview) -> None:
        bounce = self._bounce_memory(len(part))
        self._move(self._system.preadv, "read", offset, bounce)
        part[:] = bounce[: len(part)]

    def _bounce_memory(self, nbytes: int) -> memoryview:
        if not hasattr(self._bounce, "memory"):
            self._bounce.memory = memoryview(mmap.mmap(-1, _BOUNCE_BYTES))
        whole: memoryview = self._bounce.memory
        return whole[: align_up(nbytes)]

    def _move(self, call: _Call, verb: str, offset: int, memory: memoryview) -> None:
        """Repeat `call` until every byte has moved. Python itself repeats a call that a signal interrupted."""
        position = 0
        while position < len(memory):
            block = memory[position : position + BLOCK_BYTES]
            try:
                moved = call(self._fd, [block], offset + position)
            except OSError as error:
                raise self._failure(verb, offset + position, len(block), error) from error
            if self.direct and moved < len(block):
                moved -= moved % ALIGNMENT_BYTES  # the next call has to start aligned again
            if moved <= 0:
                raise self._failure(verb, offset + position, len(block), None)
            position += moved

    def _failure(self, verb: str, offset: int, nbytes: int, error: OSError | None) -> PageError:
        why = "no bytes moved" if error is None else f"{error.strerror} (errno {error.errno})"
        return PageError(
            f"cannot {verb} {format_bytes(nbytes)} at byte {offset} of the page file in {self.directory}: {why}",
            "check the disk, or name another directory for the page file",
        )

    def _drop_cached(self, offset: int, nbytes: int) -> None:
        """Without O_DIRECT: start writing back what is dirty, and drop what is clean."""
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _set_direct(self) -> bool:
        """Switch the page cache off. Some file systems accept the flag and then refuse the I/O, so try one."""
        if not _O_DIRECT or self.medium == "memory":
            return False
        import fcntl

        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | _O_DIRECT)
            if self.nbytes:
                os.pwritev(self._fd, [self._bounce_memory(ALIGNMENT_BYTES)], 0)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                self.close()
                raise _unusable(self.directory, error) from error
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
            return False
        return True


def align_up(nbytes: int) -> int:
    """The next multiple of 4096."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def address_of(memory: memoryview) -> int:
    """The address of the first byte of writable memory; 0 when there is none."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) if len(memory) else 0


def _open_reserved(directory: Path, nbytes: int) -> int:
    try:
        fd = _open_unnamed(directory)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        _reserve(fd, nbytes, directory)
    except OSError as error:
        os.close(fd)
        raise _no_room(directory, nbytes, error) from error
    return fd


def _open_unnamed(directory: Path) -> int:
    if _O_TMPFILE:
        try:
            return os.open(directory, _O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED or not directory.is_dir():
                raise
    fd, path = tempfile.mkstemp(prefix=".gradbase-pages-", dir=directory)
    os.unlink(path)
    return fd


def _reserve(fd: int, nbytes: int, directory: Path) -> None:
    """Ask before taking: reserving more than there is fills the disk for everyone until it fails."""
    if nbytes == 0:
        return
    if nbytes > _free_bytes(directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, nbytes)
    else:
        os.ftruncate(fd, nbytes)


def _free_bytes(directory: Path) -> int:
    state = os.statvfs(directory)
    return state.f_bavail * state.f_frsize


def _unusable(directory: Path, error: OSError) -> PageError:
    return PageError(
        f"cannot make a page file in {directory}: {error.strerror} (errno {error.errno})",
        "name a directory on a local disk that exists and can be written",
    )


def _no_room(directory: Path, nbytes: int, error: OSError) -> PageError:
    return PageError(
        f"the page file needs {format_bytes(nbytes)} in {directory}: {error.strerror} (errno {error.errno})",
        f"{format_bytes(_free_bytes(directory))} are free there",
        "free space, name another directory for the page file, or plan with a larger memory budget",
    )


def _medium(directory: Path) -> Medium:
    """Whether a directory lies on a disk or in memory, by the mount table; "disk" where there is none."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "disk"
    for line in mounts:
        fields, _, kind = line.partition(" - ")
        if fields.split()[2] == wanted:
            return "memory" if kind.split()[0] in ("tmpfs", "ramfs") else "disk"
    return "disk"
