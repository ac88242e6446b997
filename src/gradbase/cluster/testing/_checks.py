"""The checks, one function each. Raise AssertionError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from gradbase.cluster.testing._trials import Death, Engine, Kind, Result, Trial
from gradbase.store.machine import Job
from gradbase.store.machine.consistency import Consistency, Durability
from gradbase.store.machine.history import check
from gradbase.store.machine.messages import NO_BATCH
from gradbase.store.machine.notes import Applied, Recovered, Restored

LANES = 2
STEPS = 6
LEVELS: tuple[tuple[Consistency, int], ...] = (("bsp", 0), ("ssp", 0), ("ssp", 2), ("asp", 0))
DURABLE: tuple[Durability, ...] = ("none", "checkpoint", "wal")
MORTAL: tuple[Kind, ...] = ("worker", "shard", "coordinator")

Check = Callable[[Engine], None]


def check_engine(engine: Engine) -> None:
    """Run the whole suite."""
    for run in engine_checks().values():
        run(engine)


def engine_checks() -> dict[str, Check]:
    """The checks by name, for a test runner."""
    checks: dict[str, Check] = {
        "bsp gives the same values run after run": check_same_again,
        "bsp gives the same values with any number of workers": check_any_number_of_workers,
    }
    for consistency, staleness in LEVELS:
        checks[f"{consistency}:{staleness} uses every batch once and keeps its promises"] = partial(
            check_promises, consistency=consistency, staleness=staleness
        )
    for kind in MORTAL:
        for durability in DURABLE:
            for consistency, staleness in (("bsp", 0), ("ssp", 1)):
                checks[f"{consistency}, {durability}: a {kind} is killed"] = partial(
                    check_death, consistency=consistency, staleness=staleness, durability=durability, kind=kind
                )
    checks["bsp, wal, physical: a shard is killed"] = check_physical_log
    checks["bsp, wal: all die at once, twice"] = check_all_die
    return checks


def check_same_again(engine: Engine) -> None:
    trial = Trial(_job("bsp"), LANES)
    assert engine.run(trial).digest == engine.run(trial).digest


def check_any_number_of_workers(engine: Engine) -> None:
    digests = {engine.run(Trial(_job("bsp"), workers)).digest for workers in (1, LANES, LANES + 1)}
    assert len(digests) == 1, digests


def check_promises(engine: Engine, consistency: Consistency, staleness: int) -> None:
    trial = Trial(_job(consistency, staleness), LANES)
    _judge(trial, engine.run(trial))


def check_death(engine: Engine, consistency: Consistency, staleness: int, durability: Durability, kind: Kind) -> None:
    if kind not in engine.mortal:
        return
    _survive(engine, _job(consistency, staleness, durability), (Death(((kind, 0),), 0.5),))


def check_physical_log(engine: Engine) -> None:
    kind: Kind = "shard" if "shard" in engine.mortal else "coordinator"
    job = Job(LANES, 2, STEPS, "bsp", durability="wal", logging="physical")
    _survive(engine, job, (Death(((kind, 0),), 0.5),))


def check_all_die(engine: Engine) -> None:
    everyone: list[tuple[Kind, int]] = [("worker", 0), ("worker", 1), ("shard", 0), ("shard", 1), ("coordinator", 0)]
    mortal = tuple(who for who in everyone if who[0] in engine.mortal)
    _survive(engine, _job("bsp", durability="wal"), (Death(mortal, 0.3), Death(mortal, 0.7)))


def _survive(engine: Engine, job: Job, deaths: tuple[Death, ...]) -> None:
    """The job ends, its history breaks nothing, and under bsp the values are those of the run in which nobody died."""
    trial = Trial(job, LANES, deaths)
    result = engine.run(trial)
    assert result.killed == sum(len(death.who) for death in deaths), f"{result.killed} were killed of {deaths}"
    _judge(trial, result)
    if job.consistency == "bsp":
        unfailed = engine.run(Trial(job, LANES))
        assert result.digest == unfailed.digest, f"{result.digest} after {deaths}, {unfailed.digest} without"


def _judge(trial: Trial, result: Result) -> None:
    violations = check(trial.job, result.history)
    assert not violations, [str(violation) for violation in violations[:5]]
    for shard in range(trial.job.shards):
        used = batches_used(trial.job, result, shard)
        wrong = {batch: used[batch] for batch in range(trial.job.batches) if used[batch] != 1}
        assert not wrong, f"batches of shard {shard} not used exactly once: {wrong}"


def batches_used(job: Job, result: Result, shard: int) -> Counter[int]:
    """How often every batch is in the shard's final values: those restored, and those applied since."""
    used: Counter[int] = Counter()
    for note in result.history:
        if isinstance(note, Recovered) and note.shard == shard:
            used.clear()
        elif isinstance(note, Restored) and note.shard == shard:
            ranges = ((0, note.step * job.lanes),) if job.consistency == "bsp" else note.used
            used = Counter(batch for low, high in ranges for batch in range(low, high))
        elif isinstance(note, Applied) and note.shard == shard and note.fresh and note.batch != NO_BATCH:
            used[note.batch] += 1
        elif isinstance(note, Applied) and note.shard == shard and job.consistency == "bsp":
            used.update(range(note.seq * job.lanes, (note.seq + 1) * job.lanes))
    return used


def _job(consistency: Consistency, staleness: int = 0, durability: Durability = "none") -> Job:
    logging = "command" if consistency == "bsp" else "physical"
    return Job(LANES, 2, STEPS, consistency, staleness, durability, logging)  # type: ignore[arg-type]
