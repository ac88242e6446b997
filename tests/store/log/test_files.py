"""The real disk and the one that fails keep the same promises."""

from __future__ import annotations

import os
import random

import pytest

from gradbase.store.files import DiskFiles, aligned_memory
from gradbase.store.files.testing import Crash, MemoryFiles

BLOCK = 4096


@pytest.fixture(params=["disk", "memory"])
def files(request, tmp_path):
    return DiskFiles(tmp_path) if request.param == "disk" else MemoryFiles()


def blocks(count: int, seed: int = 0) -> memoryview:
    memory = aligned_memory(count * BLOCK)
    memory[:] = random.Random(seed).randbytes(len(memory))
    return memory


@pytest.mark.parametrize("mode", ["plain", "direct", "durable"])
def test_what_was_written_is_read(files, mode):
    file = files.open("x", create=True, mode=mode)
    parts = [blocks(1, 1), blocks(3, 2), blocks(2, 3)]
    file.write_all(BLOCK, parts)
    file.write(0, blocks(1, 4))
    expected = bytes(blocks(1, 4)) + b"".join(parts)
    assert file.read(0, 1 << 20) == expected and file.size() == len(expected)
    assert file.read(5000, 100) == expected[5000:5100] and file.read(1 << 20, 10) == b""


@pytest.mark.parametrize("mode", ["plain", "direct"])
def test_short_writes_are_continued(tmp_path, monkeypatch, mode):
    dice = random.Random(5)
    real = os.pwritev

    def short(fd, buffers, offset):
        joined = b"".join(buffers)
        count = dice.randint(1, len(joined) // BLOCK) * BLOCK if mode == "direct" else dice.randint(1, len(joined))
        memory = aligned_memory(len(joined))
        memory[: len(joined)] = joined
        return real(fd, [memory[:count]], offset)

    file = DiskFiles(tmp_path).open("x", create=True, mode=mode)
    parts = [blocks(dice.randint(1, 4), seed) for seed in range(20)]
    monkeypatch.setattr(os, "pwritev", short)
    file.write_all(0, parts)
    monkeypatch.undo()
    assert file.read(0, 1 << 20) == b"".join(parts)


def test_reserved_space_is_zero_and_not_counted_as_written(files):
    file = files.open("x", create=True)
    file.write(0, blocks(1))
    file.sync()
    file.reserve(16 * BLOCK)
    assert file.size() == 16 * BLOCK and file.read(BLOCK, BLOCK) == bytes(BLOCK)
    assert file.next_data(0) == 0 and file.next_data(16 * BLOCK) == 16 * BLOCK
    file.reserve(4 * BLOCK)
    assert file.size() == 16 * BLOCK


def test_names(files):
    files.make_directory("a/b")
    files.open("a/b/x", create=True).close()
    files.rename("a/b", "a/c")
    assert files.names("a/c") == ["x"] and not files.exists("a/b") and files.names("absent") == []
    files.remove("a")
    files.remove("a")
    assert not files.exists("a/c/x")
    with pytest.raises(FileNotFoundError):
        files.open("a/c/x")


def test_a_lock_is_held_once(files):
    release = files.lock("LOCK")
    with pytest.raises(BlockingIOError):
        files.lock("LOCK")
    release()
    release()
    files.lock("LOCK")()


def test_a_crash_keeps_what_was_synced_and_any_sectors_of_the_rest():
    seen = set()
    for seed in range(60):
        files = MemoryFiles(seed)
        file = files.open("x", create=True)
        file.write(0, memoryview(b"a" * 1024))
        file.sync()
        files.sync_directory("")
        file.write(0, memoryview(b"b" * 1024))
        files.stop_after = files.calls + 1
        with pytest.raises(Crash):
            file.write(1024, memoryview(b"c" * 1024))
        data = files.after_crash().open("x").read(0, 4096).ljust(2048, b"-")
        seen.add("".join(chr(data[sector * 512]) for sector in range(4)).replace("\0", "-"))
    assert {"aa--", "bbcc", "ab--"} <= seen and not any("b" in each[2:] or "c" in each[:2] for each in seen)
