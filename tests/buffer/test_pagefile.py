import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradbase.buffer import Arena, PageFile, _pagefile
from gradbase.common.errors import PageError

MIB = 1 << 20
SHM = Path("/dev/shm")


class FaultySystem:
    """System calls that move less than asked, or fail, as told."""

    def __init__(self, move=lambda nbytes: nbytes, error=0):
        self.move, self.error, self.calls = move, error, 0

    def pwritev(self, fd, buffers, offset):
        return os.pwritev(fd, self._shortened(buffers), offset) if self._goes() else 0

    def preadv(self, fd, buffers, offset):
        return os.preadv(fd, self._shortened(buffers), offset) if self._goes() else 0

    def _goes(self):
        self.calls += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return self.move(1) is not None

    def _shortened(self, buffers):
        return [buffers[0][: self.move(len(buffers[0]))]]


def fill(memory: memoryview, seed: int) -> bytes:
    data = random.Random(seed).randbytes(len(memory))
    memory[:] = data
    return data


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("nbytes", [4096, 9 * MIB, 5 * MIB + 4095, 1, 0])
@pytest.mark.parametrize("start", [0, 64])
def test_what_was_written_is_read(tmp_path, direct, nbytes, start):
    memory = Arena(10 * MIB).memory(start, nbytes)
    with PageFile(tmp_path, 16 * MIB, direct=direct) as pagefile:
        data = fill(memory, nbytes)
        pagefile.write(4 * MIB, memory)
        memory[:] = bytes(nbytes)
        pagefile.read(4 * MIB, memory)
        assert bytes(memory) == data


def test_a_read_leaves_the_bytes_behind_the_frame_alone(tmp_path):
    arena = Arena(MIB)
    with PageFile(tmp_path, MIB) as pagefile:
        pagefile.write(0, arena.memory(0, 8192))
        arena.memory(5000, 3192)[:] = b"\x11" * 3192
        pagefile.read(0, arena.memory(0, 5000))
    assert bytes(arena.memory(5000, 3192)) == b"\x11" * 3192


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), nbytes=st.integers(1, 3 * MIB), direct=st.booleans())
def test_short_transfers_are_continued(tmp_path, seed, nbytes, direct):
    dice = random.Random(seed)

    def some_of(available):
        grain = 4096 if direct else 1
        return dice.randint(1, -(-available // grain)) * grain if available > 1 else 1

    memory = Arena(4 * MIB).memory(0, nbytes)
    with PageFile(tmp_path, 4 * MIB, direct=direct, system=FaultySystem(some_of)) as pagefile:
        data = fill(memory, seed)
        pagefile.write(0, memory)
        memory[:] = bytes(nbytes)
        pagefile.read(0, memory)
    assert bytes(memory) == data


def test_a_transfer_that_stops_between_sectors_starts_again_aligned(tmp_path):
    """A direct transfer may report any count; going on from an odd place would be refused."""
    offsets = []

    class Odd:
        def pwritev(self, fd, buffers, offset):
            offsets.append(offset)
            return 5000 if len(offsets) == 1 else os.pwritev(fd, buffers, offset)

        preadv = staticmethod(os.preadv)

    with PageFile(tmp_path, MIB, system=Odd()) as pagefile:
        pagefile.direct = True
        pagefile.write(0, Arena(MIB).memory(0, 16384))
    assert offsets == [0, 4096]


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "No space"), (errno.EIO, "Input/output error")])
def test_a_failing_disk_is_an_error_with_the_place(tmp_path, code, words):
    with PageFile(tmp_path, MIB, system=FaultySystem(error=code)) as pagefile:
        memory = Arena(MIB).memory(0, 8192)
        with pytest.raises(PageError, match=f"cannot write 8.00 KiB at byte 4096 .*{words}"):
            pagefile.write(4096, memory)
        with pytest.raises(PageError, match=f"cannot read 8.00 KiB at byte 4096 .*{words}"):
            pagefile.read(4096, memory)


def test_a_disk_that_moves_nothing_is_an_error_not_a_loop(tmp_path):
    memory = Arena(MIB).memory(0, 8192)
    with PageFile(tmp_path, MIB, system=FaultySystem(lambda nbytes: None)) as pagefile:
        for move in (pagefile.write, pagefile.read):
            with pytest.raises(PageError, match="no bytes moved"):
                move(0, memory)


def test_a_full_disk_is_found_when_the_file_is_made(tmp_path):
    free = os.statvfs(tmp_path)
    needed = 4 * free.f_bavail * free.f_frsize
    with pytest.raises(PageError, match=r"page file needs .*No space(.|\n)*are free there"):
        PageFile(tmp_path, needed)


def test_a_reservation_that_fails_leaves_no_file_open(tmp_path, monkeypatch):
    def refuse(fd, offset, nbytes):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PageError, match="quota"):
        PageFile(tmp_path, MIB)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_directory_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(PageError, match="cannot make a page file"):
        PageFile(tmp_path / name, MIB)


def test_the_file_has_no_name(tmp_path):
    with PageFile(tmp_path, MIB):
        assert list(tmp_path.iterdir()) == []


def test_without_tmpfile_support_the_name_goes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_pagefile, "_O_TMPFILE", 0)
    with PageFile(tmp_path, MIB) as pagefile:
        assert list(tmp_path.iterdir()) == []
        memory = Arena(MIB).memory(0, 8192)
        data = fill(memory, 1)
        pagefile.write(0, memory)
        memory[:] = bytes(8192)
        pagefile.read(0, memory)
        assert bytes(memory) == data


def test_a_file_system_that_refuses_direct_transfers_is_used_without(tmp_path, monkeypatch):
    """Some accept the flag when the file is opened and refuse the first transfer."""
    plain = os.pwritev

    def refuse_direct(fd, buffers, offset):
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", refuse_direct)
    with PageFile(tmp_path, MIB) as pagefile:
        assert not pagefile.direct
        memory = Arena(MIB).memory(64, 5000)
        data = fill(memory, 2)
        pagefile.write(0, memory)
        pagefile.read(0, memory)
        assert bytes(memory) == data


@pytest.mark.skipif(not SHM.is_dir(), reason="no RAM disk here")
def test_a_ram_disk_is_called_one():
    with PageFile(SHM, MIB) as pagefile:
        assert (pagefile.medium, pagefile.direct) == ("memory", False)


def test_misplaced_pages_are_mistakes(tmp_path):
    memory = Arena(MIB).memory(0, 8192)
    with PageFile(tmp_path, 8192) as pagefile:
        with pytest.raises(AssertionError, match="multiple of 4096"):
            pagefile.write(64, memory)
        with pytest.raises(AssertionError, match="outside"):
            pagefile.write(4096, memory)
    with pytest.raises(AssertionError, match="closed"):
        pagefile.write(0, memory)


def free_bytes(directory: Path) -> int:
    state = os.statvfs(directory)
    return state.f_bfree * state.f_frsize


def test_the_space_comes_back_after_kill_9(tmp_path):
    nbytes = 512 * MIB
    code = f"""
import sys, time
from gradbase.buffer import Arena, PageFile
pagefile = PageFile({str(tmp_path)!r}, {nbytes})
pagefile.write(0, Arena(1 << 20).memory(0, 1 << 20))
print("ready", flush=True)
time.sleep(60)
"""
    before = free_bytes(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    taken = before - free_bytes(tmp_path)
    assert list(tmp_path.iterdir()) == []
    child.kill()
    child.wait()
    child.stdout.close()
    assert list(tmp_path.iterdir()) == []
    end = time.monotonic() + 10
    while before - free_bytes(tmp_path) > taken - nbytes // 2 and time.monotonic() < end:
        time.sleep(0.05)
    # others use the disk too, so compare with half of the file
    assert taken > nbytes // 2
    assert before - free_bytes(tmp_path) <= taken - nbytes // 2
