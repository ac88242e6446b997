"""`gradbase doctor`: whether this machine has what gradbase needs, each with what to do where it has not."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from gradbase.catalog import TABLES, Catalog, default_path
from gradbase.cli._console import Console
from gradbase.common.errors import GradbaseError, UsageError
from gradbase.common.units import format_bytes

_PYTHON_LEAST = (3, 10)
_TORCH_LEAST = (2, 11)
_FREE_MEMORY_LEAST_BYTES = 1 << 30  # torch, a small model and its step
_FREE_DISK_LEAST_BYTES = 4 << 30
_TIER_SECONDS = 0.3

DONE, FAILED = 0, 2


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do unless it is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Check and print; the exit code is 0 unless something failed."""
    failed = False
    for look in _looks(arguments):
        for check in look():
            failed = failed or check.status == "fail"
            _print(console, check)
    return FAILED if failed else DONE


def _print(console: Console, check: Check) -> None:
    if console.json_lines:
        console.json(asdict(check))
        return
    console.product(f"{check.status:<5} {check.name:<13} {check.found}")
    if check.remedy:
        console.product(f"{'':<19} -> {check.remedy}")


def _looks(arguments: argparse.Namespace) -> list[Callable[[], Iterator[Check]]]:
    return [
        _python,
        _torch,
        _devices,
        _cores,
        _memory,
        _compiler,
        lambda: _page_file(arguments.spill),
        lambda: _catalogue(arguments.catalog),
        _transformers,
    ]


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= _PYTHON_LEAST:
        yield Check("python", "ok", found)
    else:
        yield Check("python", "fail", found, f"install Python {_dotted(_PYTHON_LEAST)} or later")


def _torch() -> Iterator[Check]:
    remedy = f"install torch {_dotted(_TORCH_LEAST)} or later"
    try:
        import torch
    except ImportError as error:
        yield Check("torch", "fail", f"cannot be imported: {error}", remedy)
        return
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if numbers < _TORCH_LEAST:
        yield Check("torch", "fail", torch.__version__, remedy)
    else:
        yield Check("torch", "ok", torch.__version__)


def _devices() -> Iterator[Check]:
    from gradbase.cost._host import cpu_name

    yield Check("cpu", "ok", cpu_name())
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Check("cuda", "ok", f"{properties.name}, {format_bytes(properties.total_memory)}")
    if not torch.cuda.device_count():
        yield Check("cuda", "ok", "no CUDA device: steps run on the CPU; explain --device plans for others")


def _cores() -> Iterator[Check]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{usable} usable, torch computes on {threads}"
    if threads > usable:
        yield Check("cores", "warn", found, f"set OMP_NUM_THREADS={usable}: threads that share a core only wait")
    else:
        yield Check("cores", "ok", found)


def _memory() -> Iterator[Check]:
    total, free = _memory_bytes()
    found = f"{format_bytes(total)}, of which {format_bytes(free)} can be had"
    if free < _FREE_MEMORY_LEAST_BYTES:
        yield Check("memory", "warn", found, "close other programs, or give training a smaller --memory")
    else:
        yield Check("memory", "ok", found)


def _memory_bytes() -> tuple[int, int]:
    """All of this machine's memory, and what programs can still have of it (caches can be dropped)."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return total, free
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return total, available[0] if available else free


def _compiler() -> Iterator[Check]:
    from gradbase.buffer import load_frames

    remedy = "install a C++ compiler (g++ or clang++) or set $CXX: until then such results are copied, which costs time"
    if load_frames() is not None:
        yield Check("compiler", "ok", "the frame allocator for kernels without an out= form is compiled and installed")
    else:
        yield Check("compiler", "warn", "no frame allocator for kernels without an out= form", remedy)


def _page_file(named: Path | None) -> Iterator[Check]:
    from gradbase.buffer import PageFile, measure_tier

    directory = default_page_directory() if named is None else named
    remedy = "give train --spill a directory on a local disk"
    try:
        with PageFile(directory, 4096) as probe:
            medium, direct = probe.medium, probe.direct
        tier = measure_tier(directory, seconds=_TIER_SECONDS)
        free = shutil.disk_usage(directory).free
    except GradbaseError as error:
        yield Check("page file", "warn", error.problem, remedy)
        return
    rates = f"writes {tier.write_bytes_per_us:.0f} MB/s, reads {tier.read_bytes_per_us:.0f} MB/s"
    found = f"{directory}: {format_bytes(free)} free, {rates}"
    if medium == "memory":
        yield Check("page file", "warn", f"{found}, but it lies in memory: paging there frees nothing", remedy)
    elif not direct:
        yield Check("page file", "warn", f"{found}, no direct I/O: the system caches pages outside the budget", remedy)
    elif free < _FREE_DISK_LEAST_BYTES:
        yield Check("page file", "warn", found, f"free some space, or {remedy}")
    else:
        yield Check("page file", "ok", f"{found}, direct I/O")


def _catalogue(named: Path | None) -> Iterator[Check]:
    path = default_path() if named is None else named
    if named is not None and not named.is_file():
        raise UsageError(f"there is no catalogue at {named}", "name the file that was given to train or explain")
    try:
        with Catalog(path) as catalog:
            counts = [f"{catalog.query(f'SELECT count(*) FROM {t.name}')[1][0][0]} {t.name}" for t in TABLES]
            where = catalog.path
    except GradbaseError as error:
        yield Check("catalogue", "fail", error.problem, " ".join(error.remedies))
        return
    damaged = sorted(where.parent.glob(f"{where.name}.damaged-*"))
    found = f"{where}: {', '.join(counts)}"
    if damaged:
        remedy = f"set aside were {', '.join(file.name for file in damaged)}; remove them once you know why"
        yield Check("catalogue", "warn", f"{found}; {len(damaged)} damaged before it", remedy)
    else:
        yield Check("catalogue", "ok", found)


def _transformers() -> Iterator[Check]:
    try:
        yield Check("transformers", "ok", metadata.version("transformers"))
    except metadata.PackageNotFoundError:
        yield Check("transformers", "ok", "not installed; only recipes that import it need it")


def default_page_directory() -> Path:
    """Where train pages to unless --spill says otherwise."""
    from gradbase import compiled

    return compiled.default_page_directory()


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
