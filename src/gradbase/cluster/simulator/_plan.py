"""What one run is: a job, how many of what, and every fault with its time, all drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from gradbase.store.machine.consistency import Consistency, Durability, Job, Limits, Logging

LIMITS = Limits(
    retry_us=4_000,
    retry_us_max=16_000,
    beat_us=10_000,
    silence_us_max=60_000,
    tick_us_max=10_000,
    retained_max=3,
    unsynced_max=4,
    lease_batches=3,
)

FaultKind = Literal["crash", "power", "partition", "disk_full", "clock_jump", "hang", "leave", "join", "slow"]


@dataclass(frozen=True)
class Fault:
    """`who`: addresses it hits at `at_us`; `for_us`: until it heals, or until another process is started."""

    kind: FaultKind
    at_us: int
    for_us: int
    who: tuple[tuple[str, int], ...]
    amount: int = 0


@dataclass(frozen=True)
class Plan:
    """`odd`: the share of messages that are lost, doubled or late while faults last, which is until `calm_us`;
    `slow_syncs`: the share of syncs that take long.
    """

    seed: int
    job: Job
    workers: int
    parts: int
    odd: float
    slow_syncs: float
    calm_us: int
    checkpoint_us: int
    faults: tuple[Fault, ...]


@lru_cache(maxsize=4096)
def job_of(
    lanes: int,
    shards: int,
    steps: int,
    consistency: Consistency,
    staleness: int,
    durability: Durability,
    logging: Logging,
) -> Job:
    """Jobs are few and equal ones are the same object, so that what is derived from them is computed once."""
    return Job(lanes, shards, steps, consistency, staleness, durability, logging, workers_max=lanes + 2, limits=LIMITS)


def draw_plan(seed: int, job: Job | None = None) -> Plan:
    """The run of this seed; of this job if one is given."""
    random = Random(seed)
    job = _draw_job(random) if job is None else job
    workers = min(random.randint(1, job.lanes + 1), job.slots)
    busy_us = 2_000 * job.steps
    faults = tuple(_draw_fault(random, job, workers, busy_us) for _ in range(random.choice((0, 1, 1, 2, 3, 5))))
    calm_us = max((fault.at_us + fault.for_us for fault in faults), default=busy_us)
    return Plan(
        seed=seed,
        job=job,
        workers=workers,
        parts=random.choice((1, 1, 1, 2)),
        odd=random.choice((0.0, 0.01, 0.05, 0.2)),
        slow_syncs=random.choice((0.0, 0.1, 0.5)),
        calm_us=calm_us,
        checkpoint_us=random.choice((4_000, 10_000)) if job.durability != "none" else 0,
        faults=faults,
    )


def _draw_job(random: Random) -> Job:
    consistency: Consistency = random.choice(("bsp", "ssp", "asp"))
    durability: Durability = random.choice(("none", "checkpoint", "wal", "wal"))
    logging: Logging = random.choice(("command", "physical")) if consistency == "bsp" else "physical"
    staleness = random.randint(0, 3) if consistency == "ssp" else 0
    lanes, shards, steps = random.randint(1, 4), random.randint(1, 3), random.choice((4, 8, 12))
    return job_of(lanes, shards, steps, consistency, staleness, durability, logging)


def _draw_fault(random: Random, job: Job, workers: int, busy_us: int) -> Fault:
    kinds: tuple[FaultKind, ...] = (
        "crash", "crash", "crash", "power", "partition", "disk_full", "clock_jump", "hang", "leave", "join", "slow",
    )  # fmt: skip
    kind = random.choice(kinds)
    everyone = (
        [("coordinator", 0)]
        + [("shard", shard) for shard in range(job.shards)]
        + [("worker", worker) for worker in range(workers)]
    )
    at_us = random.randint(500, busy_us)
    for_us = random.choice((500, 5_000, 30_000, 100_000))
    if kind in ("leave", "slow"):
        who = [("worker", random.randrange(workers))]
    elif kind == "join":
        who = [("worker", random.randrange(job.slots))]
    elif kind in ("disk_full", "power"):
        who = [address for address in everyone if address[0] != "worker"]
    else:
        who = random.sample(everyone, random.choice((1, 1, 1, 2, min(3, len(everyone)))))
    amount = random.choice((-50_000, 200_000)) if kind == "clock_jump" else random.choice((2_000, 20_000))
    return Fault(kind, at_us, for_us, tuple(who), amount)
