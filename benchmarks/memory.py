"""What a process really holds, from Linux's /proc; resident pages of files are not counted.

Counting needs large allocations to go back to the system when they are freed, so that the resident set follows
what is allocated: start the process with `ENVIRONMENT`.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM back to the resident set of now


def _field_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{_STATUS} has no {name}: memory is measured on Linux only")


def settled_bytes() -> int:
    """Resident bytes, files aside, once garbage is collected and the heap's free end given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _field_bytes("VmRSS") - _field_bytes("RssFile")


def reset_peak() -> None:
    _CLEAR_REFS.write_text(_RESET_PEAK)


def peak_bytes() -> int:
    """The most that was resident since `reset_peak`, files aside."""
    return _field_bytes("VmHWM") - _field_bytes("RssFile")
