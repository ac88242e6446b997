"""The profile of the CPU at hand, from a measurement of about half a second.

It stands for operators that were never measured, so it need not be exact; it must be of the right size. numpy's
matrix product gives the arithmetic rate (with as many threads as its BLAS takes), a copy beyond all caches gives
the bandwidth. The slow tier is not measured here but where the page file lies.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradbase.catalog import Catalog
from gradbase.cost._profiles import (
    CPU_OVERHEAD_SOURCE,
    CPU_OVERHEAD_US,
    DISK_LATENCY_US,
    DISK_READ_BYTES_PER_S,
    DISK_SOURCES,
    DISK_WRITE_BYTES_PER_S,
    DeviceProfile,
)

_MATRIX = 512  # 0.27 GFLOP a product: milliseconds on one core, and well inside its caches' reach
_COPY_BYTES = 64 * 2**20  # beyond the last-level cache of most machines
# A core that has just waited, and BLAS threads that are just made, compute slowly for some tens of milliseconds.
_WARM_S = 0.1
_SECONDS_EACH = 0.05


@dataclass(frozen=True, slots=True)
class HostMeasurements:
    """What was measured on this machine, the best of several tries each."""

    float32_flops_per_s: float
    float64_flops_per_s: float
    copy_bytes_per_s: float  # bytes read plus bytes written
    memory_bytes: int


def measure_host() -> HostMeasurements:
    """Measure arithmetic and bandwidth with numpy. About half a second."""
    return HostMeasurements(
        float32_flops_per_s=_matrix_flops_per_s(np.float32),
        float64_flops_per_s=_matrix_flops_per_s(np.float64),
        copy_bytes_per_s=_copy_bytes_per_s(),
        memory_bytes=_memory_bytes(),
    )


def host_profile(
    catalog: Catalog | None = None,
    *,
    threads: int | None = None,
    measure: Callable[[], HostMeasurements] = measure_host,
) -> DeviceProfile:
    """The profile of this machine's CPU, kept in `catalog` and measured when it is not there yet.

    `threads` (default: the cores this process may use) only keys what is kept: numpy chooses its own number.
    Raises CatalogError when the catalogue cannot be used.
    """
    device, threads = cpu_name(), threads or _cores()
    kept = None if catalog is None else catalog.lookup_profile(device, threads)
    profile = None if kept is None else _parse(kept)
    if profile is None:
        profile = profile_from_measurements(device, measure())
        if catalog is not None:
            catalog.record_profile(device, threads, profile.to_json())
    return profile


def profile_from_measurements(name: str, measured: HostMeasurements) -> DeviceProfile:
    """A CPU profile from what was measured; the efficiencies are 1 because the rates are sustained ones."""
    product = f"measured: numpy product of {_MATRIX}x{_MATRIX} matrices"
    same = "taken as float32's: numpy has no such product to measure"
    return DeviceProfile(
        name=name,
        kind="cpu",
        peak_flops={
            "float64": measured.float64_flops_per_s,
            "float32": measured.float32_flops_per_s,
            "bfloat16": measured.float32_flops_per_s,
            "float16": measured.float32_flops_per_s,
        },
        compute_efficiency=1.0,
        memory_bandwidth_bytes_per_s=measured.copy_bytes_per_s,
        memory_efficiency=1.0,
        memory_bytes=measured.memory_bytes,
        overhead_us=CPU_OVERHEAD_US,
        tier_write_bytes_per_s=DISK_WRITE_BYTES_PER_S,
        tier_read_bytes_per_s=DISK_READ_BYTES_PER_S,
        tier_latency_us=DISK_LATENCY_US,
        tier_duplex=False,
        sources={
            "peak_flops.float64": f"{product}, float64",
            "peak_flops.float32": f"{product}, float32",
            "peak_flops.bfloat16": same,
            "peak_flops.float16": same,
            "compute_efficiency": "1: the rate is a measured one",
            "memory_bandwidth_bytes_per_s": f"measured: numpy copy of {_COPY_BYTES >> 20} MiB, read plus written",
            "memory_efficiency": "1: the bandwidth is a measured one",
            "memory_bytes": "physical memory, or this process's cgroup limit where that is lower",
            "overhead_us": CPU_OVERHEAD_SOURCE,
            **DISK_SOURCES,
        },
    )


def cpu_name() -> str:
    """The processor's model name, and the host's, as clocks and memory differ between hosts of one model."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else model} on {platform.node()}"


def _parse(document: str) -> DeviceProfile | None:
    """A kept profile, None when it is of a form no longer used: then it is measured again."""
    try:
        profile = DeviceProfile.from_json(document)
        return profile if profile.figures().keys() <= profile.sources.keys() else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _matrix_flops_per_s(dtype: type[np.floating]) -> float:
    left = np.full((_MATRIX, _MATRIX), 0.5, dtype=dtype)
    out = np.empty_like(left)
    return 2 * _MATRIX**3 / _best_s(lambda: np.matmul(left, left, out=out))


def _copy_bytes_per_s() -> float:
    source = np.zeros(_COPY_BYTES, dtype=np.uint8)
    source.fill(1)  # a page that was never written is the kernel's shared zero page, and reads from cache
    target = np.empty_like(source)
    return 2 * _COPY_BYTES / _best_s(lambda: np.copyto(target, source))


def _best_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, those that warm up included: a peak is what was reached once."""
    best, spent = math.inf, 0.0
    while spent < _WARM_S + _SECONDS_EACH:
        start = time.perf_counter()
        work()
        taken = max(time.perf_counter() - start, 1e-9)
        best, spent = min(best, taken), spent + taken
    return best


def _memory_bytes() -> int:
    """Physical memory, or the cgroup's limit; 16 GiB where the system does not say."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [16 * 2**30]
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
