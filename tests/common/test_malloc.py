"""Memory that was freed: what the system sees of it, inside the blocks and outside, each time in a new process."""

from __future__ import annotations

import ctypes

import pytest

from tests.common.processes import printed

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's malloc")

# `kept()` is the share that the process still holds of 32 MiB that were taken in blocks of 1 MiB, written, and freed.
_COMMON = """
import ctypes, threading
from gradbase.common.malloc import freed_memory_returned, release_freed_memory

BLOCK_BYTES, BLOCKS = 1 << 20, 32
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024 / (BLOCK_BYTES * BLOCKS)

def kept():
    release_freed_memory()
    before = resident()
    blocks = [libc.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    for block in blocks:
        libc.free(block)
    return resident() - before
"""


def shares(program: str, **environment: str) -> list[float]:
    """The numbers that a program prints."""
    return [float(word) for word in printed(_COMMON + program, **environment).split()]


def test_freed_memory_leaves_within_the_block_and_is_kept_after_it() -> None:
    inside, after = shares("""
with freed_memory_returned():
    print(kept())
print(kept())
""")
    assert inside < 0.1 and after > 0.9


def test_what_was_kept_leaves_when_a_block_begins() -> None:
    (left,) = shares("""
with freed_memory_returned():
    pass
kept()
before = resident()
with freed_memory_returned():
    print(before - resident())
""")
    assert left > 0.9


def test_blocks_nest_and_overlap() -> None:
    nested, overlapping, after = shares("""
began, go_on = threading.Event(), threading.Event()

def other():
    with freed_memory_returned():
        began.set()
        go_on.wait()

thread = threading.Thread(target=other)
with freed_memory_returned():
    thread.start()
    began.wait()
    with freed_memory_returned():
        pass
    print(kept())
print(kept())
go_on.set()
thread.join()
print(kept())
""")
    assert nested < 0.1 and overlapping < 0.1 and after > 0.9


def test_afterwards_the_users_own_settings_hold() -> None:
    (after,) = shares(
        """
with freed_memory_returned():
    pass
print(kept())
""",
        MALLOC_MMAP_THRESHOLD_="65536",
    )
    assert after < 0.1
