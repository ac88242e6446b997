"""The live table of a job with several workers: drawn again and again on a terminal, one plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from gradbase.cli._progress import Progress
from gradbase.common.units import format_bytes

if TYPE_CHECKING:
    from gradbase.cluster.job import Traffic
    from gradbase.cluster.steward import ShardStatus, StepReport

_REDRAW_S = 0.25
_RATE_STEPS = 32  # reports of a worker that its rate is taken from


@dataclass
class _Line:
    step: int = 0
    staleness_steps: int = 0
    loss: float = 0.0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RATE_STEPS))

    def samples_per_s(self, now_s: float) -> float:
        samples = sum(count for _, count in self.recent)
        return samples / max(now_s - self.recent[0][0], 1e-3) if len(self.recent) > 1 else 0.0


class Table:
    """Rows of workers and of shards. `clock` gives seconds."""

    def __init__(
        self,
        progress: Progress,
        steps: int | None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._steps = steps
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._workers: dict[int, _Line] = {}
        self._next_s = float("-inf")

    def report(self, report: StepReport) -> None:
        line = self._workers.setdefault(report.worker, _Line())
        line.step, line.staleness_steps, line.loss = report.step, report.staleness_steps, report.loss
        line.recent.append((self._clock(), report.samples))

    def draw(
        self,
        shards: Callable[[], Sequence[tuple[ShardStatus, int]]],
        traffic: Callable[[], Mapping[int, Traffic]] = dict,
    ) -> None:
        """Show how things stand, if it is time to. `shards` gives each with its bytes, `traffic` of some workers
        what went over the wire.
        """
        now_s = self._clock()
        if self._progress.quiet or now_s < self._next_s:
            return
        self._next_s = now_s + _REDRAW_S
        if self._terminal:
            self._progress.block(self.lines(shards(), now_s, traffic()))
        else:
            step = max(line.step for line in self._workers.values())
            rate = sum(line.samples_per_s(now_s) for line in self._workers.values())
            loss = sum(line.loss for line in self._workers.values()) / len(self._workers)
            self._progress.update("step", step, self._steps, f"loss {loss:.4f}  {rate:.1f} samples/s")

    def close(self) -> None:
        self._progress.clear()

    def lines(
        self, shards: Sequence[tuple[ShardStatus, int]], now_s: float, traffic: Mapping[int, Traffic] | None = None
    ) -> list[str]:
        """The table: a row for every worker, then one for every shard."""
        of = f"/{self._steps}" if self._steps else ""
        wire = f"  {'pushed':>10}  {'pulled':>10}" if traffic else ""
        rows = [f"{'worker':>6}  {'step':>12}  {'staleness':>9}  {'samples/s':>9}  {'loss':>10}{wire}"]
        for number, line in sorted(self._workers.items()):
            rate = line.samples_per_s(now_s)
            rows.append(
                f"{number:>6}  {f'{line.step}{of}':>12}  {line.staleness_steps:>9}  {rate:>9.1f}  {line.loss:>10.4f}"
                + (_wire(traffic.get(number)) if traffic else "")
            )
        rows.append(f"{'shard':>6}  {'queue':>12}  {'bytes':>9}  {'LSN':>9}  {'durable':>10}")
        for number, (shard, nbytes) in enumerate(shards):
            size = format_bytes(nbytes)
            rows.append(f"{number:>6}  {shard.queue:>12}  {size:>9}  {shard.lsn:>9}  {shard.durable_lsn:>10}")
        return rows


def _wire(traffic: Traffic | None) -> str:
    """Two columns; of a worker that shares the slab nothing is sent."""
    sent = ("-", "-") if traffic is None else map(format_bytes, (traffic.pushed_nbytes, traffic.pulled_nbytes))
    return "".join(f"  {each:>10}" for each in sent)
