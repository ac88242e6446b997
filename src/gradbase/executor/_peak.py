"""Measured memory: what the system says the process holds, not what we believe to have allocated."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import torch

from gradbase.common.malloc import release_freed_memory

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMeter:
    """The peak of memory above a baseline, in bytes.

    On the CPU it is the peak resident set (VmHWM) without file-backed pages, read from /proc (Linux); on CUDA
    the allocator's peak. The baseline is taken when the meter is made; `counted_bytes` is what is already there
    then and belongs to the step (parameters, arena, ...), so that the planner's own objects do not count.
    """

    def __init__(self, device: torch.device, counted_bytes: int) -> None:
        self._device = device
        self._counted_bytes = counted_bytes
        self.peak_bytes: int | None = None
        gc.collect()
        release_freed_memory()
        self._baseline_bytes = self._held_bytes("VmRSS")

    def reset(self) -> None:
        """Start a new interval."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            reset_resident_peak()

    def read(self) -> None:
        """Take the peak since the last reset into account."""
        held = self._held_bytes("VmHWM")
        if held is not None and self._baseline_bytes is not None:
            above = held - self._baseline_bytes + self._counted_bytes
            self.peak_bytes = max(self.peak_bytes or 0, above)

    def _held_bytes(self, field: str) -> int | None:
        if self._device.type == "cuda":
            current = field == "VmRSS"
            return (
                torch.cuda.memory_allocated(self._device) if current else torch.cuda.max_memory_allocated(self._device)
            )
        return resident_bytes(field)


def resident_bytes(field: str) -> int | None:
    """ "VmRSS" or its peak "VmHWM" without file-backed pages; None where there is no /proc."""
    try:
        status = _STATUS.read_text()
    except OSError:
        return None
    return _bytes_of(status, field) - _bytes_of(status, "RssFile") - _bytes_of(status, "RssShmem")


def reset_resident_peak() -> None:
    """Let the peak of the resident set start again from its present size."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def _bytes_of(status: str, field: str) -> int:
    """Of "VmRSS:      123 kB". By its place, as all sixty lines would take longer than a small kernel."""
    start = status.index(field + ":") + len(field) + 1
    return int(status[start : status.index("kB", start)]) * 1024
