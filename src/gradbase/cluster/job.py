"""A job as every engine takes it, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gradbase.store.machine.consistency import Consistency, Durability, Job, Limits, Logging

if TYPE_CHECKING:
    from torch import nn

    from gradbase.cluster.worker import Recipe

# Messages of machines that share a process are never lost, so they are repeated rarely; processes are watched directly.
LIMITS = Limits(retry_us=200_000, retry_us_max=2_000_000, beat_us=500_000, silence_us_max=60_000_000)
STEPS_UNKNOWN = 1 << 40  # bsp, for a stream that does not say how long it is: until it ends


@dataclass(frozen=True)
class Request:
    """What to train and how. `build` makes the recipe afresh, the same in every process, and can be pickled.

    steps: updates under bsp, each from one micro-batch of every worker; under ssp and asp as many batches are used one
    by one. None: until the stream ends. threads: of torch, in every worker; the bits of a sum may depend on them.
    memory: a budget for each worker's step, as `gradbase.compile` takes it; None computes as plain torch does.
    lanes: micro-batches of a step, as many as workers unless said. logging: None chooses what is cheapest to keep.
    codec: what gradients go through, as `parse_codecs` reads it; None chooses by the measured speed of link and codecs.
    """

    build: Callable[[], Recipe]
    workers: int
    steps: int | None = None
    consistency: Consistency = "bsp"
    staleness_steps: int = 0
    durability: Durability = "none"
    store: Path | None = None
    resume: bool = False
    threads: int = 1
    memory: str | int | None = None
    lanes: int | None = None
    logging: Logging | None = None
    codec: str | None = None

    @property
    def shared(self) -> bool:
        """Whether models are views of the slab: nobody computes while values change, under bsp alone."""
        return self.consistency == "bsp"

    @property
    def lane_count(self) -> int:
        return self.lanes or self.workers

    def job(self, steps: int, seed: int) -> Job:
        """The job as its machines see it: as many shards as lanes, since each process serves one."""
        return Job(
            lanes=self.lane_count,
            shards=self.lane_count,
            steps=steps,
            consistency=self.consistency,
            staleness_steps=self.staleness_steps,
            durability=self.durability,
            logging=self.logging or ("command" if self.consistency == "bsp" else "physical"),
            workers_max=max(2 * self.lane_count, self.workers + 1),
            seed=seed,
            limits=LIMITS,
        )


class CodecChoice(NamedTuple):
    """The codec of a job as text, and why."""

    codec: str
    reason: str


class Traffic(NamedTuple):
    """Bytes that went between processes without shared memory; `gradient_nbytes` is what was pushed, not encoded."""

    pushed_nbytes: int = 0
    pulled_nbytes: int = 0
    gradient_nbytes: int = 0

    def plus(self, other: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Outcome:
    """`model` has the final values. `steps` were done in all, those before a resume included; `lost` workers ended.

    codec: what gradients went through. traffic: all bytes between processes that share no memory.
    left_out: batches at the end of the stream that make no whole step under bsp.
    """

    model: nn.Module
    steps: int
    interrupted: bool
    lost: int
    slab_nbytes: int
    codec: str = "none"
    traffic: Traffic = Traffic()
    left_out: int = 0
