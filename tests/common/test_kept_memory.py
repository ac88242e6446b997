"""Memory that was freed and is kept, each time in a new process."""

from __future__ import annotations

import ctypes

import pytest

from tests.common.processes import printed

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")

_NBYTES = 64 << 20
_PREPARED = f"""
import resource
from gradbase.common.malloc import freed_memory_kept, keep_freed_memory

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def use():
    assert len(b"1" * {_NBYTES}) == {_NBYTES}

began = resident_bytes()
"""


def grown_bytes(code: str) -> int:
    """By how much the process is larger after `code` than before."""
    return int(printed(_PREPARED + code + "\nprint(resident_bytes() - began)"))


def test_what_was_freed_stays():
    assert grown_bytes("assert keep_freed_memory(); use()") > 0.9 * _NBYTES


def test_and_is_used_again():
    assert grown_bytes("keep_freed_memory()\nfor _ in range(20): use()") < 4 * _NBYTES


def test_it_is_given_back_at_the_end_of_the_block():
    within = "    use()\n    assert resident_bytes() - began > 0.9 * " + str(_NBYTES)
    assert grown_bytes("with freed_memory_kept():\n" + within) < _NBYTES / 2


def test_nothing_is_changed_unless_wanted():
    assert grown_bytes("with freed_memory_kept(False):\n    use()") < _NBYTES / 2


def test_who_has_set_malloc_up_is_left_alone():
    assert printed(_PREPARED + "print(keep_freed_memory())", MALLOC_MMAP_THRESHOLD_="131072") == "False"
    assert printed(_PREPARED + "print(keep_freed_memory())", GLIBC_TUNABLES="glibc.malloc.mmap_max=10") == "False"
