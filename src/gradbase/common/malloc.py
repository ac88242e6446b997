"""What glibc's malloc does with memory that was freed: give it back to the system, or keep it for the next request.

The system clears every page that it hands out, which takes longer than all else that a processor does with a gradient.
Left alone, malloc comes to keep blocks of up to 32 MiB, and gives back larger ones. A process inside a budget has to
give back more, as what is kept counts; a worker without one had better keep all: that takes a fourth off the step of a
wide net, and leaves the process as large as its widest step made it. Settings hold for the whole process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_DEFAULT_MAPS, _NO_MAPS, _NEVER = 1 << 16, 0, -1
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


def keep_freed_memory() -> bool:
    """From now on all of it. False, and nothing is done, where malloc is another or the user has set it up."""
    return not _is_set_up() and _call("mallopt", _MMAP_MAX, _NO_MAPS) and _call("mallopt", _TRIM_THRESHOLD, _NEVER)


@contextlib.contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Within the block, if `wanted`; afterwards what is not in use is given back to the system."""
    kept = wanted and keep_freed_memory()
    try:
        yield
    finally:
        if kept:
            _call("mallopt", _MMAP_MAX, _DEFAULT_MAPS)
            _call("mallopt", _TRIM_THRESHOLD, _KEPT_BYTES[_TRIM_THRESHOLD])
            release_freed_memory()


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


def _is_set_up() -> bool:
    """By its variables of the environment; or another library's malloc was put before glibc's."""
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return tuned or "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)


def _call(name: str, *arguments: int) -> bool:
    """A function of malloc.h; False if this process's C library has none of that name, or refuses."""
    function = getattr(_libc(), name, None)
    return function is not None and function(*arguments) == 1


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
