"""How much memory there is, before a table is read that does not fit."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gradbase.common.errors import TableError
from gradbase.common.units import format_bytes

_CGROUP = Path("/sys/fs/cgroup")
_BASE_BYTES = 400 * 2**20  # torch, DuckDB and what DuckDB holds before it spills
LABEL_BYTES = 100  # measured: of reading and inference together, a label in `crowd`
CLAIM_BYTES = 1400  # and a claim in `fuse`, with every output, where all values differ


def needed_bytes(rows: int, row_bytes: int = LABEL_BYTES) -> int:
    """What `rows` claims take at most, from reading to the answer."""
    return _BASE_BYTES + row_bytes * rows


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """What this process may still take: the machine's available memory, or the cgroup's rest. None: not known."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        lines = meminfo.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or "max": no limit
        limit = int((cgroup / "memory.max").read_text())
        found.append(limit - int((cgroup / "memory.current").read_text()))
    return min(found, default=None)


def refuse_too_many(name: str, rows: int | None, available: int | None, row_bytes: int = LABEL_BYTES) -> None:
    """Raises TableError when `rows` claims cannot be held in `available` bytes; either may be unknown."""
    if rows is None or available is None or needed_bytes(rows, row_bytes) <= available:
        return
    fits = max(available - _BASE_BYTES, 0) // row_bytes
    raise TableError(
        f"{name} has about {rows:,} rows, which need {format_bytes(needed_bytes(rows, row_bytes))} of memory, and"
        f" {format_bytes(available)} are free",
        f"about {fits:,} rows fit: read it in parts (a query per part, state in and out), or on a larger machine",
    )
