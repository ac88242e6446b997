"""Measuring the slow tier, so that the planner knows what a page costs on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
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
_MATRIX = 256  # a fraction of a millisecond, so that many fit beside one transfer
# A core that has just waited computes slowly for some tens of milliseconds: first warm, then as long as transfers take.
_WARM_S = 0.05
_ALONE_S = 0.15
# Both directions at once count as duplex when each keeps this share of its speed.
_DUPLEX_SHARE = 0.75
_TAX_MAX = 0.95


def measure_tier(directory: str | os.PathLike[str], *, seconds: float = 1.0) -> Tier:
    """Write and read a 64 MiB page file in `directory` for about `seconds`, through a `Pager`, as a step does.

    Every figure is the median of at least three rounds; in each, writing, reading, both at once, and a matrix
    product alone and beside the transfers are timed one after the other, so that other load on the machine
    meets them alike. Raises PageError.
    """
    with PageFile(directory, _PAGES * _PAGE_BYTES) as pagefile, Pager(pagefile) as pager:
        arena = Arena(2 * _PAGES * _PAGE_BYTES)
        bench = _Bench(pager, arena)
        bench.write()  # the first writes also turn reserved blocks into written ones
        latency_us = median(bench.latency_us() for _ in range(_LATENCY_PROBES))
        rounds = _repeat(bench.round, seconds)
        arena.close()
    return _tier_of(rounds, latency_us)


@dataclass(frozen=True, slots=True)
class _Round:
    write_rate: float  # bytes per µs, alone
    read_rate: float
    both_write_rate: float  # the same, with the other direction running
    both_read_rate: float
    tax: float


class _Bench:
    """A pager with pages to move: one half of the arena is written, the other read."""

    def __init__(self, pager: Pager, arena: Arena) -> None:
        self._pager = pager
        self._sources = [arena.memory(page * _PAGE_BYTES, _PAGE_BYTES) for page in range(_PAGES)]
        self._targets = [arena.memory((_PAGES + page) * _PAGE_BYTES, _PAGE_BYTES) for page in range(_PAGES)]
        self._tiny = arena.memory(0, ALIGNMENT_BYTES)
        self._compute = _product()

    def round(self) -> _Round:
        write_rate, read_rate = self.write(), self.read()
        both_write_rate, both_read_rate = self._both()
        return _Round(write_rate, read_rate, both_write_rate, both_read_rate, self._tax())

    def write(self) -> float:
        return self._rate(lambda: self._start_writes(range(_PAGES)))

    def read(self) -> float:
        return self._rate(lambda: self._start_reads(range(_PAGES)))

    def latency_us(self) -> float:
        """A 4 KiB page read by a thread that waits for it: the handover included, as the plan pays it."""
        began = time.perf_counter()
        self._pager.start_in(0, self._tiny, 0)
        self._pager.wait_in(0)
        return (time.perf_counter() - began) * 1e6

    def _rate(self, start: Callable[[], None]) -> float:
        began = time.perf_counter()
        start()
        self._pager.drain()
        return _PAGES * _PAGE_BYTES / ((time.perf_counter() - began) * 1e6)

    def _both(self) -> tuple[float, float]:
        """Half the pages out while the other half comes in; each direction's rate by its own busy time."""
        half = _PAGES // 2
        self._pager.reset_statistics()
        self._start_writes(range(half))
        self._start_reads(range(half, _PAGES))
        self._pager.drain()
        seen = self._pager.statistics()
        return seen.page_out.nbytes / seen.page_out.busy_us, seen.page_in.nbytes / seen.page_in.busy_us

    def _tax(self) -> float:
        """The share of a transfer's time that computing beside it loses."""
        self._pace_for(_WARM_S)
        alone = self._pace_for(_ALONE_S)
        self._start_writes(range(_PAGES))
        beside_writes = self._pace_of_transfers()
        self._start_reads(range(_PAGES))
        beside_reads = self._pace_of_transfers()
        return min(max(1 - (beside_writes + beside_reads) / 2 / alone, 0.0), _TAX_MAX)

    def _pace_for(self, seconds: float) -> float:
        end = time.perf_counter() + seconds
        return self._pace(lambda: time.perf_counter() < end)

    def _pace_of_transfers(self) -> float:
        pace = self._pace(lambda: not self._pager.idle())
        self._pager.drain()
        return pace

    def _pace(self, goes_on: Callable[[], bool]) -> float:
        """Matrix products per second while `goes_on`."""
        began = time.perf_counter()
        count = 0
        while goes_on():
            self._compute()
            count += 1
        return count / (time.perf_counter() - began)

    def _start_writes(self, pages: range) -> None:
        for page in pages:
            self._pager.start_out(page, self._sources[page], page * _PAGE_BYTES)

    def _start_reads(self, pages: range) -> None:
        for page in pages:
            self._pager.start_in(page, self._targets[page], page * _PAGE_BYTES)


def _product() -> Callable[[], Any]:
    """A matrix product into memory that is there, with torch and its threads, as the step's kernels run."""
    import torch

    left, right = torch.rand(_MATRIX, _MATRIX), torch.rand(_MATRIX, _MATRIX)
    result = torch.empty(_MATRIX, _MATRIX)
    return lambda: torch.mm(left, right, out=result)


def _repeat(run: Callable[[], _Round], seconds: float) -> list[_Round]:
    end = time.perf_counter() + seconds
    rounds: list[_Round] = []
    while len(rounds) < _ROUNDS_MIN or time.perf_counter() < end:
        rounds.append(run())
    return rounds


def _tier_of(rounds: list[_Round], latency_us: float) -> Tier:
    write_rate = median(each.write_rate for each in rounds)
    read_rate = median(each.read_rate for each in rounds)
    keeps_writing = median(each.both_write_rate for each in rounds) / write_rate
    keeps_reading = median(each.both_read_rate for each in rounds) / read_rate
    return Tier(
        write_bytes_per_us=write_rate,
        read_bytes_per_us=read_rate,
        latency_us=latency_us,
        compute_tax=median(each.tax for each in rounds),
        duplex=min(keeps_writing, keeps_reading) >= _DUPLEX_SHARE,
        alignment_bytes=ALIGNMENT_BYTES,
        source="measured",
    )
