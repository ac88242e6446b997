"""What glibc's malloc does with memory that was freed: give it back to the system, or keep it for the next request.

Left alone it comes to keep blocks of up to 32 MiB. That is fast, as the system clears every page that it hands out, and
it makes a process hold far more than it uses. Settings hold for the whole process; with another malloc they do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_RETURNED_BYTES = 256 << 10
# Where glibc arrives by itself once large blocks come and go: DEFAULT_MMAP_THRESHOLD_MAX, and twice that (mallopt(3)).
_KEPT_BYTES = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_VARIABLES = {_MMAP_THRESHOLD: "MALLOC_MMAP_THRESHOLD_", _TRIM_THRESHOLD: "MALLOC_TRIM_THRESHOLD_"}

_lock = threading.Lock()
_open_blocks = 0


@contextlib.contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Within the block every large block of memory leaves the process when it is freed; what is free leaves at once.

    Afterwards malloc keeps memory again as it would have by itself, or as its variables of the environment say: what
    else the process does loses no time. Blocks may nest, and overlap on several threads. Costs some 20 µs.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def release_freed_memory() -> None:
    """Give what malloc holds and nobody uses back to the system."""
    _call("malloc_trim", 0)


def _enter() -> None:
    global _open_blocks
    with _lock:
        _open_blocks += 1
        if _open_blocks == 1:
            for parameter in _KEPT_BYTES:
                _call("mallopt", parameter, _RETURNED_BYTES)
            release_freed_memory()


def _leave() -> None:
    global _open_blocks
    with _lock:
        _open_blocks -= 1
        if _open_blocks == 0:
            for parameter, kept_bytes in _KEPT_BYTES.items():
                _call("mallopt", parameter, _from_environment(parameter, kept_bytes))


def _from_environment(parameter: int, default: int) -> int:
    text = os.environ.get(_VARIABLES[parameter], "")
    return int(text) if text.isdecimal() else default


def _call(name: str, *arguments: int) -> None:
    """A function of malloc.h, if this process's C library has it."""
    function = getattr(_libc(), name, None)
    if function is not None:
        function(*arguments)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
