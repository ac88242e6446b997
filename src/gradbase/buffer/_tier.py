"""Measuring the slow tier, so that the planner knows what a page costs on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from statistics import median, quantiles
from typing import Any

from gradbase.buffer._arena import Arena
from gradbase.buffer._pagefile import ALIGNMENT_BYTES, PageFile
from gradbase.buffer._pager import Pager
from gradbase.ir.costs import Tier

# What a plan pages: a few MiB to a few tens. Several in flight, as in a step.
_PAGE_BYTES = 16 << 20
_PAGES = 4
_ROUNDS_MIN = 3
_LATENCY_PROBES = 50
# A kernel of each kind takes a fraction of a millisecond, so that many fit beside one transfer.
_MATRIX = 256
_STREAM = 32  # stretches of a vector too long for caches
_STRETCH = 1 << 17  # elements
# A core that has just waited computes slowly for some tens of milliseconds: first warm, then as long as transfers take.
_WARM_S = 0.02
_ALONE_S = 0.05
# Both directions at once count as duplex when each keeps this share of its speed.
_DUPLEX_SHARE = 0.75
_TAX_MAX = 0.95


def measure_tier(directory: str | os.PathLike[str], *, seconds: float = 2.5) -> Tier:
    """Write and read a 64 MiB page file in `directory` for about `seconds`, through a `Pager`, as a step does.

    Transfers are timed while kernels run beside them, for that is when a step's transfers run: a disk and its host
    serve a machine that waits for them faster than one that computes, and faster one that computes in its caches than
    one that passes over its memory. A rate is the lower quartile of at least three rounds, as a plan that counted on
    more waits, and one that counted on less loses little. The tax compares all kernels beside transfers with all
    kernels alone, in turn, so that other load meets both alike.
    Raises PageError.
    """
    with PageFile(directory, _PAGES * _PAGE_BYTES) as pagefile, Pager(pagefile) as pager:
        arena = Arena(2 * _PAGES * _PAGE_BYTES)
        bench = _Bench(pager, arena)
        bench.warm()
        latency_us = median(bench.latency_us() for _ in range(_LATENCY_PROBES))
        rounds = _repeat(bench.round, seconds)
        arena.close()
    return _tier_of(rounds, latency_us)


@dataclass(frozen=True, slots=True)
class _Pace:
    """Kernels run in a stretch of time."""

    kernels: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Round:
    alone: _Pace
    writing: _Pace
    reading: _Pace
    both_write_rate: float  # bytes per µs, with the other direction running
    both_read_rate: float


class _Bench:
    """A pager with pages to move: one half of the arena is written, the other read."""

    def __init__(self, pager: Pager, arena: Arena) -> None:
        self._pager = pager
        self._sources = [arena.memory(page * _PAGE_BYTES, _PAGE_BYTES) for page in range(_PAGES)]
        self._targets = [arena.memory((_PAGES + page) * _PAGE_BYTES, _PAGE_BYTES) for page in range(_PAGES)]
        self._tiny = arena.memory(0, ALIGNMENT_BYTES)
        self._compute = _kernels()

    def warm(self) -> None:
        """The first writes also turn reserved blocks of the file into written ones."""
        self._start_writes(range(_PAGES))
        self._pager.drain()

    def round(self) -> _Round:
        self._pace_for(_WARM_S)
        alone = self._pace_for(_ALONE_S)
        self._start_writes(range(_PAGES))
        writing = self._pace_of_transfers()
        self._start_reads(range(_PAGES))
        reading = self._pace_of_transfers()
        return _Round(alone, writing, reading, *self._both())

    def latency_us(self) -> float:
        """A 4 KiB page read by a thread that waits for it: the handover included, as the plan pays it."""
        began = time.perf_counter()
        self._pager.start_in(0, self._tiny, 0)
        self._pager.wait_in(0)
        return (time.perf_counter() - began) * 1e6

    def _both(self) -> tuple[float, float]:
        """Half the pages out while the other half comes in; each direction's rate by its own busy time."""
        half = _PAGES // 2
        self._pager.reset_statistics()
        self._start_writes(range(half))
        self._start_reads(range(half, _PAGES))
        self._pace_of_transfers()
        seen = self._pager.statistics()
        return seen.page_out.nbytes / seen.page_out.busy_us, seen.page_in.nbytes / seen.page_in.busy_us

    def _pace_for(self, seconds: float) -> _Pace:
        end = time.perf_counter() + seconds
        return self._pace(lambda: time.perf_counter() < end)

    def _pace_of_transfers(self) -> _Pace:
        pace = self._pace(lambda: not self._pager.idle())
        self._pager.drain()
        return pace

    def _pace(self, goes_on: Callable[[], bool]) -> _Pace:
        """Kernels while `goes_on`."""
        began = time.perf_counter()
        count = 0
        while goes_on():
            self._compute()
            count += 1
        return _Pace(count, time.perf_counter() - began)

    def _start_writes(self, pages: range) -> None:
        for page in pages:
            self._pager.start_out(page, self._sources[page], page * _PAGE_BYTES)

    def _start_reads(self, pages: range) -> None:
        for page in pages:
            self._pager.start_in(page, self._targets[page], page * _PAGE_BYTES)


def _kernels() -> Callable[[], Any]:
    """One matrix product, and one addition that passes over main memory, with torch and its threads.

    The kernels of a step are of both kinds. Results go into memory that is there.
    """
    import torch

    left, right = torch.rand(_MATRIX, _MATRIX), torch.rand(_MATRIX, _MATRIX)
    product = torch.empty(_MATRIX, _MATRIX)
    vectors = [torch.ones(_STREAM, _STRETCH) for _ in range(3)]
    stretches = cycle(list(zip(*vectors, strict=True)))

    def run() -> None:
        torch.mm(left, right, out=product)
        first, second, total = next(stretches)
        torch.add(first, second, out=total)

    return run


def _repeat(run: Callable[[], _Round], seconds: float) -> list[_Round]:
    end = time.perf_counter() + seconds
    rounds: list[_Round] = []
    while len(rounds) < _ROUNDS_MIN or time.perf_counter() < end:
        rounds.append(run())
    return rounds


def _tier_of(rounds: list[_Round], latency_us: float) -> Tier:
    write_rate = _low([_rate(each.writing) for each in rounds])
    read_rate = _low([_rate(each.reading) for each in rounds])
    keeps_writing = _low([each.both_write_rate for each in rounds]) / write_rate
    keeps_reading = _low([each.both_read_rate for each in rounds]) / read_rate
    return Tier(
        write_bytes_per_us=write_rate,
        read_bytes_per_us=read_rate,
        latency_us=latency_us,
        compute_tax=_tax(rounds),
        duplex=min(keeps_writing, keeps_reading) >= _DUPLEX_SHARE,
        alignment_bytes=ALIGNMENT_BYTES,
        source="measured",
    )


def _rate(transfers: _Pace) -> float:
    """Bytes per µs of a stretch in which all pages moved one way."""
    return _PAGES * _PAGE_BYTES / (transfers.seconds * 1e6)


def _low(rates: list[float]) -> float:
    """The lower quartile."""
    return quantiles(rates, n=4, method="inclusive")[0]


def _tax(rounds: list[_Round]) -> float:
    """The share of a transfer's time that computing beside it loses."""
    alone = _together([each.alone for each in rounds])
    beside = _together([pace for each in rounds for pace in (each.writing, each.reading)])
    return min(max(1 - beside / alone, 0.0), _TAX_MAX)


def _together(paces: list[_Pace]) -> float:
    """Kernels per second of all stretches together."""
    return sum(pace.kernels for pace in paces) / sum(pace.seconds for pace in paces)
