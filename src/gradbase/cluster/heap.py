"""Keep what a step has freed for the next one, instead of giving it back to the system.

A training step frees gigabytes that the next one asks for again. Left to itself, glibc maps every large tensor anew and
unmaps it when it is freed; the system then clears each page when it is touched, which takes longer than all else that
a processor does with a gradient. Told to keep it, glibc takes a fourth off the step of a wide net. A process then stays
as large as its widest step made it, the holes between tensors included.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_TRIM_BYTES, _MAPS = 64 << 20, 1 << 16  # what glibc arrives at by itself where large tensors come and go
_KEEP_ALL, _NO_MAPS = -1, 0


def keep_freed_memory() -> bool:
    """From now on, in this process. False, and nothing is done, where malloc is another or the user has set it up."""
    return not _is_set_up() and _tell(_MMAP_MAX, _NO_MAPS) and _tell(_TRIM_THRESHOLD, _KEEP_ALL)


@contextlib.contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Within the block, if `wanted`; afterwards what is not in use is given back to the system."""
    kept = wanted and keep_freed_memory()
    try:
        yield
    finally:
        if kept:
            _tell(_MMAP_MAX, _MAPS)
            _tell(_TRIM_THRESHOLD, _TRIM_BYTES)
            ctypes.CDLL(None).malloc_trim(0)


def _is_set_up() -> bool:
    """By its variables of the environment; or another library's malloc was put before glibc's."""
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return tuned or "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)


def _tell(parameter: int, value: int) -> bool:
    """mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(parameter, value) == 1
