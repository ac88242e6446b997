import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradbase.buffer import Arena, DeviceArena
from gradbase.common.errors import PageError

MIB = 1 << 20
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


def flags_of_mapping(address: int) -> list[str]:
    """The kernel's flags of the mapping that starts at or before an address (proc_pid_smaps(5), VmFlags)."""
    found: list[str] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            found = line.split()[1:]
    return found


def test_windows_share_the_arena_and_copy_nothing():
    arena = Arena(MIB)
    rows = arena.tensor(4096, "float32", (4, 8), (8, 1))
    columns = arena.tensor(4096, torch.float32, (8, 4), (1, 8))
    rows.copy_(torch.arange(32.0).reshape(4, 8))
    assert torch.equal(columns, rows.T)
    assert rows.data_ptr() == arena.address + 4096
    assert bytes(arena.memory(4096, 128)) == rows.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"])
def test_every_dtype_can_be_a_window(dtype):
    window = Arena(MIB).tensor(64, dtype, (3, 5), (5, 1))
    window.copy_(torch.arange(15).reshape(3, 5) % 2)
    assert window.dtype == getattr(torch, dtype)
    assert window.long().sum() == 7


def test_a_window_s_storage_ends_where_the_frame_ends():
    arena = Arena(MIB)
    window = arena.tensor(0, "float32", (4, 3), (6, 2))
    assert window.untyped_storage().nbytes() == (3 * 6 + 2 * 2 + 1) * 4


def test_several_windows_can_stand_on_one_storage():
    storage = Arena(MIB).storage(128, 64)
    first = torch.empty(0).set_(storage, 0, (16,), (1,))
    second = torch.empty(0).set_(storage, 4, (4,), (3,))
    second.fill_(7.0)
    assert first[4::3].tolist() == [7.0] * 4


@pytest.mark.parametrize(("shape", "strides"), [((0,), (1,)), ((3, 0, 2), (0, 2, 1)), ((), ())])
def test_empty_windows_and_scalars(shape, strides):
    window = Arena(4096).tensor(0, "float32", shape, strides)
    assert window.shape == shape


def test_an_empty_arena_can_be_made():
    arena = Arena(0)
    assert arena.tensor(0, "float32", (0,), (1,)).numel() == 0
    with pytest.raises(AssertionError, match="outside"):
        arena.memory(0, 1)


def test_frames_outside_the_arena_are_refused():
    arena = Arena(4096)
    for offset, nbytes in ((0, 4097), (4096, 1), (-1, 1)):
        with pytest.raises(AssertionError, match="outside"):
            arena.memory(offset, nbytes)
    with pytest.raises(AssertionError, match="multiple of its element size"):
        arena.tensor(2, "float32", (1,), (1,))


def test_prefault_makes_the_memory_resident_and_close_returns_it():
    before = resident_bytes()
    lazy = Arena(64 * MIB, prefault=False)
    assert resident_bytes() - before < 8 * MIB
    arena = Arena(64 * MIB)
    assert resident_bytes() - before > 56 * MIB
    arena.close()
    arena.close()
    gc.collect()
    assert resident_bytes() - before < 8 * MIB
    assert arena.closed and not lazy.closed


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="the kernel has no huge pages")
def test_huge_pages_are_asked_for_and_keep_the_size():
    before = resident_bytes()
    arena = Arena(33 * MIB + 12345)
    assert resident_bytes() - before < 35 * MIB
    assert "hg" in flags_of_mapping(arena.address)


def test_prefault_without_the_system_call(monkeypatch):
    monkeypatch.setattr("gradbase.buffer._arena._MADV_POPULATE_WRITE", 12345)
    before = resident_bytes()
    arena = Arena(32 * MIB)
    assert resident_bytes() - before > 28 * MIB
    assert bytes(arena.memory(31 * MIB, 16)) == bytes(16)


@pytest.mark.parametrize("hold", ["tensor", "storage", "memory"])
def test_views_outlive_close(hold):
    arena = Arena(8 * MIB)
    window = arena.tensor(4 * MIB, "float32", (1024,), (1,))
    window.fill_(3.0)
    held = {"tensor": window, "storage": window.untyped_storage(), "memory": arena.memory(4 * MIB, 4096)}[hold]
    del window
    arena.close()
    del arena
    gc.collect()
    filler = [Arena(8 * MIB) for _ in range(4)]  # would take over the addresses if they had been given back
    assert bytes(held.numpy() if hold == "tensor" else held)[:4] == b"\x00\x00\x40\x40"
    del filler


def test_a_closed_arena_gives_no_more_frames():
    arena = Arena(4096)
    arena.close()
    with pytest.raises(AssertionError, match="closed"):
        arena.memory(0, 16)


def test_memory_the_system_does_not_have_is_an_error_with_the_number():
    with pytest.raises(PageError, match=r"2097152\.00 TiB|smaller memory budget"):
        Arena(1 << 61)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_do_not_get_the_arena():
    """In a process of its own, because forking beside torch's and pytest's threads is no good habit."""
    code = """
import os
from pathlib import Path
from gradbase.buffer import Arena
arena = Arena(1 << 20)
def mapped():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(int(a, 16) <= arena.address < int(b, 16) for a, b in (line.split()[0].split("-") for line in lines))
assert mapped()
child = os.fork()
if child == 0:
    os._exit(1 if mapped() else 0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_importing_the_room_imports_no_torch():
    code = "import gradbase.buffer, gradbase.buffer.testing, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_device_arena_speaks_the_same_protocol():
    arena = DeviceArena(MIB, "cpu")
    window = arena.tensor(4096, "float32", (4, 8), (1, 4))
    window.copy_(torch.arange(32.0).reshape(4, 8))
    assert arena.memory(4096, 128).view(torch.float32)[1] == window[1, 0]
    assert window.data_ptr() == arena.address + 4096
    arena.close()
    assert arena.closed
    with pytest.raises(AssertionError, match="closed"):
        arena.memory(0, 16)
