"""A disk that fails: in memory, seeded, for property tests.

    files = MemoryFiles(seed=7, stop_after=40)      # the 40th call that changes something raises Crash
    try: ...
    except Crash: files = files.after_crash()       # what a restart would find

A crash keeps of each file what was synced, and of the writes after that any sectors of any of them; of each
directory's names a prefix of what was done since it was synced. A write that the crash interrupts may survive in part.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gradbase.store.files._protocol import BLOCK_BYTES, Mode

SECTOR_BYTES = 512


class Crash(BaseException):
    """The process ended here. Not an Exception: nothing that handles errors may handle this."""


@dataclass
class _Content:
    """One file: its bytes, its bytes as last synced, and what was done since."""

    now: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes] | int] = field(default_factory=list)  # a write, or a new length
    reserved: int = 0

    def do(self, change: tuple[int, bytes] | int) -> None:
        _apply(self.now, change)
        self.since.append(change)

    def sync(self) -> None:
        self.durable, self.since = bytearray(self.now), []


@dataclass(frozen=True)
class _Step:
    """Something done to a name of a directory, until the directory is synced."""

    what: str
    path: str
    new: str = ""
    content: _Content | None = None


class MemoryFiles:
    """Files in memory, with faults.

    stop_after: number of the changing call at which Crash is raised. capacity: bytes that files may take together.
    direct: whether files say that they bypass the page cache.
    """

    def __init__(
        self, seed: int = 0, *, stop_after: int | None = None, capacity: int | None = None, direct: bool = True
    ) -> None:
        self.dice = random.Random(seed)
        self.calls = 0
        self.stop_after, self.capacity, self.direct = stop_after, capacity, direct
        self._names: dict[str, _Content | None] = {"": None}  # None is a directory
        self._durable_names: dict[str, _Content | None] = {"": None}
        self._undone: dict[str, list[_Step]] = {}
        self._locked: set[str] = set()

    def open(self, path: str, *, create: bool = False, mode: Mode = "plain") -> MemoryFile:
        if path not in self._names:
            if not create or os.path.dirname(path) not in self._names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._count()
            self._names[path] = _Content()
            self._note(_Step("make", path, content=self._names[path]))
        content = self._names[path]
        if content is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        direct = self.direct and mode != "plain"
        return MemoryFile(self, content, direct, direct and mode == "durable")

    def names(self, directory: str) -> list[str]:
        return sorted(os.path.basename(path) for path in self._names if path and os.path.dirname(path) == directory)

    def exists(self, path: str) -> bool:
        return path in self._names

    def make_directory(self, path: str) -> None:
        """Directories are made durable at once: no program can do anything about their loss but make them again."""
        while path not in self._names:
            self._names[path] = self._durable_names[path] = None
            path = os.path.dirname(path)

    def rename(self, old: str, new: str) -> None:
        self._count()
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        _move(self._names, old, new)
        self._note(_Step("rename", old, new))

    def remove(self, path: str) -> None:
        """File by file, in any order, for so a disk does it: a crash may leave some."""
        if path not in self._names:
            return
        inside = [name for name in self._names if name.startswith(path + "/")]
        self.dice.shuffle(inside)
        for name in (*sorted(inside, key=lambda name: -name.count("/")), path):
            self._count()
            _drop(self._names, name)
            self._note(_Step("remove", name))

    def sync_directory(self, path: str) -> None:
        self._count()
        for step in self._undone.pop(path, []):
            self._settle(step)

    def free_bytes(self) -> int:
        return 1 << 40 if self.capacity is None else self.capacity - self._taken()

    def lock(self, path: str) -> Callable[[], None]:
        if path in self._locked:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), path)
        self._locked.add(path)
        return lambda: self._locked.discard(path)

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        """Damage a bit, as a disk does."""
        content = self._names[path]
        assert content is not None
        content.now[offset] ^= 1 << bit
        content.sync()

    def after_crash(self) -> MemoryFiles:
        """What is there after a restart, without faults to come."""
        for directory, steps in self._undone.items():
            for step in steps[: self.dice.randint(0, len(steps))]:
                self._settle(step)
            self._undone[directory] = []
        kept = MemoryFiles(self.dice.getrandbits(32), capacity=self.capacity, direct=self.direct)
        contents = {id(content): self._survived(content) for content in self._durable_names.values() if content}
        kept._names = {path: content and contents[id(content)] for path, content in self._durable_names.items()}
        kept._durable_names = dict(kept._names)
        return kept

    def _survived(self, content: _Content) -> _Content:
        data = bytearray(content.durable)
        for change in content.since:
            for part in self._torn(change):
                _apply(data, part)
        return _Content(data, bytearray(data), [], len(data))

    def _torn(self, change: tuple[int, bytes] | int) -> list[tuple[int, bytes] | int]:
        fate = self.dice.choice(("all", "none", "some"))
        if fate == "none":
            return []
        if fate == "all" or isinstance(change, int):
            return [change]
        offset, data = change
        starts = range(0, len(data), SECTOR_BYTES)
        return [(offset + at, data[at : at + SECTOR_BYTES]) for at in starts if self.dice.random() < 0.5]

    def _count(self) -> None:
        self.calls += 1
        if self.stop_after is not None and self.calls >= self.stop_after:
            raise Crash

    def _note(self, step: _Step) -> None:
        self._undone.setdefault(os.path.dirname(step.path), []).append(step)

    def _settle(self, step: _Step) -> None:
        if step.what == "make":
            self._durable_names[step.path] = step.content
        elif step.what == "remove":
            _drop(self._durable_names, step.path)
        elif step.path in self._durable_names:
            _move(self._durable_names, step.path, step.new)

    def _taken(self) -> int:
        contents = {id(content): content for content in self._names.values() if content is not None}
        return sum(max(len(content.now), content.reserved) for content in contents.values())

    def _take(self, content: _Content, nbytes: int) -> None:
        more = nbytes - max(len(content.now), content.reserved)
        if self.capacity is not None and more > 0 and self._taken() + more > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class MemoryFile:
    """An open file of MemoryFiles."""

    def __init__(self, files: MemoryFiles, content: _Content, direct: bool, syncs_writes: bool) -> None:
        self._files, self._content = files, content
        self.direct, self.syncs_writes = direct, syncs_writes

    def read(self, offset: int, nbytes: int) -> bytes:
        return bytes(self._content.now[offset : offset + nbytes])

    def read_into(self, offset: int, memory: memoryview) -> int:
        data = self.read(offset, len(memory))
        memory[: len(data)] = data
        return len(data)

    def write(self, offset: int, data: memoryview) -> None:
        if self.direct:
            assert offset % BLOCK_BYTES == 0 and len(data) % BLOCK_BYTES == 0, "direct writes are aligned"
        self._files._take(self._content, offset + len(data))
        try:
            self._files._count()
        except Crash:
            self._content.do((offset, bytes(data)))  # it was under way: some of it may be there
            raise
        self._content.do((offset, bytes(data)))
        if self.syncs_writes:
            self._content.sync()

    def write_all(self, offset: int, parts: Sequence[memoryview]) -> None:
        self.write(offset, memoryview(b"".join(parts)))

    def sync(self) -> None:
        self._files._count()
        self._content.sync()

    def reserve(self, nbytes: int) -> None:
        self._files._count()
        self._files._take(self._content, nbytes)
        self._content.reserved = max(self._content.reserved, nbytes)
        if len(self._content.now) < nbytes:
            self._content.do(nbytes)

    def truncate(self, nbytes: int) -> None:
        self._files._count()
        self._content.reserved = nbytes
        self._content.do(nbytes)

    def size(self) -> int:
        return len(self._content.now)

    def next_data(self, offset: int) -> int:
        return min(offset, self.size())

    def is_shared(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _apply(data: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        data[:] = data[:change].ljust(change, b"\0")
        return
    offset, new = change
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


def _move(names: dict[str, _Content | None], old: str, new: str) -> None:
    _drop(names, new)
    for path in [path for path in names if path == old or path.startswith(old + "/")]:
        names[new + path[len(old) :]] = names.pop(path)


def _drop(names: dict[str, _Content | None], path: str) -> None:
    for name in [name for name in names if name == path or name.startswith(path + "/")]:
        del names[name]
