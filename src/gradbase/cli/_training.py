"""The training loop: steps until the batches end, or the number asked for, or Ctrl-C."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

from gradbase.cli._console import Console
from gradbase.cli._interrupts import Interrupts
from gradbase.cli.recipe import Job
from gradbase.common.units import format_bytes

_log = logging.getLogger("gradbase.cli")
_END = object()


@dataclass
class History:
    """The steps that were done: losses, and the time of each in µs from batch to loss."""

    losses: list[float] = field(default_factory=list)
    times_us: list[float] = field(default_factory=list)
    interrupted: bool = False

    @property
    def steps(self) -> int:
        return len(self.losses)


def run_steps(job: Job, step: Any, limit: int | None, console: Console) -> History:
    """Train until the batches or the steps asked for end. Ctrl-C lets the step at work finish, then stops."""
    history = History()
    job.first = None  # only the iterator holds the batch from here on
    began = time.monotonic()
    try:
        with Interrupts(lambda: console.say("stopping after this step; Ctrl-C again stops at once")) as interrupts:
            while limit is None or history.steps < limit:
                batch = next(job.batches, _END)
                if batch is _END:
                    break
                with interrupts.deferred():
                    _one_step(job, step, batch, history, console)
                    console.progress.update("step", history.steps, limit, _live(step, history, began))
    except KeyboardInterrupt:
        if not history.steps:
            raise
        history.interrupted = True
    console.progress.clear()
    if limit is not None and history.steps < limit and not history.interrupted:
        console.say(f"batches() ended after {history.steps} of {limit} steps")
    return history


def _one_step(job: Job, step: Any, batch: Any, history: History, console: Console) -> None:
    began = time.perf_counter()
    loss = float(step(batch))
    time_us = (time.perf_counter() - began) * 1e6
    history.losses.append(loss)
    history.times_us.append(time_us)
    if job.updated(history.steps):
        job.schedule(loss)
    if not math.isfinite(loss) and (history.steps == 1 or math.isfinite(history.losses[-2])):
        _log.warning("the loss of step %d is %s", history.steps, loss)
    console.event("step", step=history.steps, loss=loss, time_us=time_us)


def _live(step: Any, history: History, began: float) -> str:
    rate = history.steps / max(time.monotonic() - began, 1e-9)
    speed = f"{rate:.2f} it/s" if rate >= 1 else f"{1 / rate:.2f} s/it"
    peak = f"peak {format_bytes(step.measured_peak_bytes)}" if step.measured_peak_bytes else ""
    budget = f" of {format_bytes(step.budget_bytes)}" if peak and step.budget_bytes else ""
    return f"loss {history.losses[-1]:.4f}  {speed}  {peak}{budget}".rstrip()
