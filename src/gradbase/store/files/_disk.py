"""Files on a disk, through `os`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradbase.store.files._protocol import BLOCK_BYTES, Mode, aligned_memory

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_O_DSYNC = getattr(os, "O_DSYNC", 0)
# What open() or the first transfer answers where the file system knows no direct I/O.
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})
_fdatasync = getattr(os, "fdatasync", os.fsync)

_PARTS_MAX = 512  # a call takes 1024 on Linux
PROBE = ".disk"  # by which disks are measured: its name is gone at once
_PROBE_WRITES = 9
_PROBE_BYTES = 4 << 20


class DiskFiles:
    """The files under `root`, which is made when the first of them is."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def open(self, path: str, *, create: bool = False, mode: Mode = "plain") -> DiskFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        if mode != "plain" and _O_DIRECT:
            extra = _O_DIRECT | (_O_DSYNC if mode == "durable" else 0)
            with contextlib.suppress(_Unsupported):
                return DiskFile(_open_direct(self.root / path, flags | extra), True, mode == "durable")
        return DiskFile(os.open(self.root / path, flags, 0o644), False, False)

    def names(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / directory))
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    def make_directory(self, path: str) -> None:
        os.makedirs(self.root / path, exist_ok=True)

    def rename(self, old: str, new: str) -> None:
        os.replace(self.root / old, self.root / new)

    def remove(self, path: str) -> None:
        target = self.root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def sync_directory(self, path: str) -> None:
        fd = os.open(self.root / path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self) -> int:
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def lock(self, path: str) -> Callable[[], None]:
        import fcntl

        fd = os.open(self.root / path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return _once(lambda: os.close(fd))


class DiskFile:
    """A descriptor and what it was opened for."""

    def __init__(self, fd: int, direct: bool, syncs_writes: bool) -> None:
        self._fd = fd
        self.direct = direct
        self.syncs_writes = syncs_writes

    def read(self, offset: int, nbytes: int) -> bytes:
        if self.direct:
            return self._read_direct(offset, nbytes)
        memory = bytearray(min(nbytes, max(self.size() - offset, 0)))
        return bytes(memory[: self.read_into(offset, memoryview(memory))])

    def read_into(self, offset: int, memory: memoryview) -> int:
        position = 0
        while position < len(memory) and (moved := os.preadv(self._fd, [memory[position:]], offset + position)):
            position += moved
        return position

    def write(self, offset: int, data: memoryview) -> None:
        position = 0
        while position < len(data):
            moved = os.pwritev(self._fd, [data[position:]], offset + position)
            if self.direct and moved < len(data) - position:
                moved -= moved % BLOCK_BYTES  # the next call has to start aligned again
            if moved <= 0:
                raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: no bytes moved")
            position += moved

    def write_all(self, offset: int, parts: Sequence[memoryview]) -> None:
        for first in range(0, len(parts), _PARTS_MAX):
            group = parts[first : first + _PARTS_MAX]
            moved = os.pwritev(self._fd, group, offset)
            for part in group:  # what one call did not write, whole parts and the rest of one, is written by others
                done = min(max(moved, 0), len(part))
                done -= done % BLOCK_BYTES if self.direct and done < len(part) else 0
                self.write(offset + done, part[done:])
                offset, moved = offset + len(part), moved - len(part)

    def sync(self) -> None:
        _fdatasync(self._fd)

    def reserve(self, nbytes: int) -> None:
        if hasattr(os, "posix_fallocate"):
            if nbytes:
                os.posix_fallocate(self._fd, 0, nbytes)
        elif self.size() < nbytes:
            os.ftruncate(self._fd, nbytes)

    def truncate(self, nbytes: int) -> None:
        os.ftruncate(self._fd, nbytes)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def next_data(self, offset: int) -> int:
        if not hasattr(os, "SEEK_DATA"):
            return min(offset, self.size())
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self.size()

    def is_shared(self) -> bool:
        """The kernel grants a write lease only on a file that nobody else has open, mapped or linked."""
        if os.fstat(self._fd).st_nlink > 1:
            return True
        try:
            import fcntl

            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except (ImportError, AttributeError, OSError):
            return True
        return False

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def _read_direct(self, offset: int, nbytes: int) -> bytes:
        first = offset - offset % BLOCK_BYTES
        memory = aligned_memory(offset + nbytes - first)
        filled = 0
        while filled < len(memory):
            moved = os.preadv(self._fd, [memory[filled:]], first + filled)
            filled += moved
            if moved % BLOCK_BYTES or not moved:
                break
        return bytes(memory[offset - first : min(offset - first + nbytes, filled)])


@dataclass(frozen=True)
class DiskRate:
    """What a directory's disk was measured to do: sustained writing, and a small write made durable, each by mode."""

    bytes_per_us: float
    sync_us: float
    mode: Mode

    def write_us(self, nbytes: float) -> float:
        """Estimated time until `nbytes` are durable, in one write."""
        return self.sync_us + nbytes / self.bytes_per_us


def measure_disk(files: DiskFiles, directory: str = "") -> DiskRate:
    """Write some megabytes, and small durable writes in both ways the log knows, and keep the faster way.

    Takes some tens of milliseconds and leaves no file, also where the process is killed meanwhile. Raises OSError.
    """
    modes: tuple[Mode, ...] = ("durable", "plain")
    files.make_directory(directory)
    sync_us, mode = min((_sync_us(files, directory, mode), mode) for mode in modes)
    return DiskRate(_bytes_per_us(files, directory, mode), sync_us, mode)


def _nameless(files: DiskFiles, directory: str, mode: Mode) -> DiskFile:
    """A file that is gone when it is closed, or its process ends."""
    path = os.path.join(directory, PROBE)
    file = files.open(path, create=True, mode=mode)
    files.remove(path)
    return file


def _sync_us(files: DiskFiles, directory: str, mode: Mode) -> float:
    """The least time of making one block durable: what the disk takes, not what others take of the processor."""
    block, times = aligned_memory(BLOCK_BYTES), []
    file = _nameless(files, directory, mode)
    try:
        file.reserve(BLOCK_BYTES * _PROBE_WRITES)
        for number in range(_PROBE_WRITES):
            times.append(_timed_us(file, number * BLOCK_BYTES, block))
    finally:
        file.close()
    return min(times)


def _bytes_per_us(files: DiskFiles, directory: str, mode: Mode) -> float:
    block, times = aligned_memory(_PROBE_BYTES), []
    file = _nameless(files, directory, mode)
    try:
        file.reserve(_PROBE_BYTES * 3)
        for number in range(3):
            times.append(_timed_us(file, number * _PROBE_BYTES, block))
    finally:
        file.close()
    return _PROBE_BYTES / min(times)


def _timed_us(file: DiskFile, offset: int, block: memoryview) -> float:
    start = time.perf_counter()
    file.write(offset, block)
    if not file.syncs_writes:
        file.sync()
    return (time.perf_counter() - start) * 1e6


def _once(action: Callable[[], None]) -> Callable[[], None]:
    waiting = [action]
    return lambda: waiting.pop()() if waiting else None


class _Unsupported(Exception):
    pass


def _open_direct(path: Path, flags: int) -> int:
    """A descriptor that bypasses the page cache. Some file systems take the flag and then refuse the transfers."""
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            raise _Unsupported from error
        raise
    try:
        os.preadv(fd, [aligned_memory(BLOCK_BYTES)], 0)
    except OSError as error:
        os.close(fd)
        if error.errno in _NOT_SUPPORTED:
            raise _Unsupported from error
        raise
    return fd
