"""The coordinator: terms, lanes, leases, checkpoints."""

from __future__ import annotations

from gradbase.store.machine import Coordinator, Phase, new_coordinator
from gradbase.store.machine.messages import (
    Append,
    Beat,
    CheckpointKept,
    CheckpointRecord,
    CheckpointTaken,
    Effect,
    Fence,
    Fenced,
    Finished,
    Join,
    LeaseReply,
    LeaseRequest,
    Leave,
    NewTerm,
    Open,
    Ranges,
    Ready,
    Replace,
    Report,
    ShardReport,
    ShardUp,
    TakeCheckpoint,
    TermRecord,
    View,
)
from tests.store.machine.machines import asked, job, sent

SILENCE_US = 1_000_000
REACH_ZERO: Ranges = ((0, 1),)


def gathered(coordinator: Coordinator, workers: int = 2) -> list[Effect]:
    """Shards are up, workers join, the term is logged."""
    coordinator.opened(())
    for shard in range(2):
        coordinator.receive(ShardUp(shard, 1, 0, 0))
    for worker in range(workers):
        coordinator.receive(Join(worker, 100 + worker))
    appends: list[Append] = []
    for now_us in range(0, SILENCE_US, 100_000):  # it waits a little for more to come
        appends = appends or asked(coordinator.tick(now_us), Append)
    return coordinator.synced(appends[0].record.lsn)


def report(coordinator: Coordinator, reach: tuple[Ranges, Ranges] = (REACH_ZERO, REACH_ZERO), **own) -> list[Effect]:
    """Everyone reports; what comes back are the last report's effects."""
    term = coordinator.term
    for worker, member in list(coordinator.members.items()):
        coordinator.receive(Report(term, worker, member.session, 0, (0, 0), own.get("retained", ()), ()))
    effects: list[Effect] = []
    for shard in range(2):
        complete = reach[shard][-1][1] - 1
        clock, used = own.get("clock", (0, 0, 0)), own.get("used", ((), ()))[shard]
        incarnation = coordinator.shards[shard].incarnation
        effects = coordinator.receive(ShardReport(shard, incarnation, term, reach[shard], complete, clock, used))
    return effects


def ready(coordinator: Coordinator) -> list[Effect]:
    effects: list[Effect] = []
    for shard in range(2):
        effects = coordinator.receive(Ready(shard, coordinator.shards[shard].incarnation, coordinator.term))
    return effects


def running(coordinator: Coordinator, workers: int = 2) -> list[Effect]:
    gathered(coordinator, workers)
    report(coordinator)
    return ready(coordinator)


def test_a_term_is_durable_before_anyone_hears_of_it() -> None:
    coordinator = new_coordinator(job())
    coordinator.opened([TermRecord(1, 1), TermRecord(2, 5)])
    for shard in range(2):
        coordinator.receive(ShardUp(shard, 3, 0, 0))
    coordinator.receive(Join(0, 100))
    coordinator.receive(Join(1, 101))
    effects = coordinator.tick(0)  # all that are needed are there
    assert asked(effects, Append) == [Append(TermRecord(3, 6))] and not sent(effects, Fence)
    effects = coordinator.synced(3)
    assert sent(effects, Fence) == [Fence(6, 3)] * 2
    assert sent(effects, NewTerm) == [NewTerm(6, 6, 100), NewTerm(6, 6, 101)]


def test_a_term_opens_when_all_have_reported_and_are_ready() -> None:
    coordinator = new_coordinator(job())
    gathered(coordinator)
    opens = sent(report(coordinator), Open)
    assert [(message.seq, len(message.members)) for message in opens] == [(0, 2)] * 2
    views = sent(ready(coordinator), View)
    assert [view.lanes for view in views] == [(0,), (1,)] and coordinator.phase is Phase.OPEN


def test_bsp_begins_at_the_highest_version_all_reach() -> None:
    coordinator = new_coordinator(job())
    gathered(coordinator)
    opens = sent(report(coordinator, (((0, 1), (4, 6)), ((0, 1), (3, 5)))), Open)
    assert [message.seq for message in opens] == [4, 4]


def test_what_sessions_retain_extends_what_a_shard_reaches() -> None:
    coordinator = new_coordinator(job())
    gathered(coordinator)
    retained = ((1, 0, 4), (1, 1, 4))
    opens = sent(report(coordinator, (((0, 1), (5, 6)), ((0, 5),)), retained=retained), Open)
    assert [message.seq for message in opens] == [5, 5]


def test_half_of_what_is_needed_extends_nothing() -> None:
    coordinator = new_coordinator(job())
    gathered(coordinator)
    opens = sent(report(coordinator, (((0, 1), (5, 6)), ((0, 5),)), retained=((1, 0, 4),)), Open)
    assert [message.seq for message in opens] == [0, 0]


def test_lanes_of_the_dead_go_to_the_living() -> None:
    coordinator = new_coordinator(job())
    running(coordinator)
    effects = coordinator.worker_lost(0, 100)
    assert asked(effects, Append)[0].record.term == 2
    coordinator.synced(2)
    report(coordinator)
    assert [view.lanes for view in sent(ready(coordinator), View)] == [(0, 1)]
    assert sent(coordinator.receive(Beat(1, 0, 1, 3, 0)), Fenced) == [Fenced(1)]


def test_the_death_of_an_earlier_process_is_not_the_present_ones() -> None:
    coordinator = new_coordinator(job())
    running(coordinator)
    assert not coordinator.worker_lost(0, 99)
    assert len(coordinator.members) == 2


def test_who_is_silent_is_replaced() -> None:
    coordinator = new_coordinator(job())
    running(coordinator)
    replaced: list[Replace] = []
    for now_us in range(0, 2 * SILENCE_US, 50_000):
        coordinator.receive(Beat(1, 0, 1, 0, 0))
        for shard in range(2):
            coordinator.receive(ShardUp(shard, 1, 1, 0))
        replaced += asked(coordinator.tick(now_us), Replace)
    assert replaced == [Replace(("worker", 1))]


def test_a_clock_that_jumps_kills_nobody() -> None:
    coordinator = new_coordinator(job())
    running(coordinator)
    for now_us in (0, 10**12, 5, 10**11):
        assert not asked(coordinator.tick(now_us), Replace)


def test_a_worker_that_joins_late_gets_a_lane_or_waits() -> None:
    coordinator = new_coordinator(job())
    running(coordinator, workers=1)
    assert asked(coordinator.receive(Join(1, 101)), Append), "a lane is there for it"
    coordinator.synced(2)
    report(coordinator)
    ready(coordinator)
    assert not asked(coordinator.receive(Join(2, 102)), Append), "no lane is left"
    assert asked(coordinator.receive(Leave(0, 1)), Append)


def test_leases_are_disjoint_and_a_repeated_request_gets_the_same() -> None:
    coordinator = new_coordinator(job("asp"))
    running(coordinator)
    first = sent(coordinator.receive(LeaseRequest(1, 0, 1, 1)), LeaseReply)[0].batches
    again = sent(coordinator.receive(LeaseRequest(1, 0, 1, 1)), LeaseReply)[0].batches
    other = sent(coordinator.receive(LeaseRequest(1, 1, 1, 1)), LeaseReply)[0].batches
    assert first == again == tuple(range(8)) and other == tuple(range(8, 16))
    assert sent(coordinator.receive(LeaseRequest(1, 1, 1, 2)), LeaseReply)[0].batches == ()


def test_batches_that_some_shard_lacks_are_leased_again() -> None:
    coordinator = new_coordinator(job("asp"))
    gathered(coordinator)
    report(coordinator, used=(((0, 15),), ((0, 3), (4, 16))))
    ready(coordinator)
    assert sent(coordinator.receive(LeaseRequest(1, 0, 1, 1)), LeaseReply)[0].batches == (3, 15)


def test_the_job_ends_when_every_lease_is_done() -> None:
    coordinator = new_coordinator(job("asp", lanes=1, steps=2))
    running(coordinator)
    coordinator.receive(LeaseRequest(1, 0, 1, 1))
    assert not sent(coordinator.receive(Beat(1, 0, 1, 3, 0)), Finished)
    coordinator.receive(Beat(1, 1, 1, 1, 0))
    assert sent(coordinator.receive(Beat(1, 0, 1, 3, 1)), Finished)


def test_a_logged_bsp_job_ends_when_the_last_step_is_durable() -> None:
    coordinator = new_coordinator(job(durability="wal"))
    running(coordinator)
    assert not sent(coordinator.receive(Beat(1, 0, 1, 8, 7)), Finished)
    assert sent(coordinator.receive(Beat(1, 0, 1, 8, 8)), Finished)


def test_a_checkpoint_counts_when_all_shards_have_it_and_the_log_says_so() -> None:
    coordinator = new_coordinator(job(durability="checkpoint"))
    running(coordinator)
    number = sent(coordinator.take_checkpoint(), TakeCheckpoint)[0].number
    assert not coordinator.take_checkpoint(), "one at a time"
    assert not coordinator.receive(CheckpointTaken(0, 1, number, 0, number, True))
    effects = coordinator.receive(CheckpointTaken(1, 1, number, 0, number, True))
    assert asked(effects, Append) == [Append(CheckpointRecord(2, number, (0, 0)))]
    assert sent(coordinator.synced(2), CheckpointKept) == [CheckpointKept(1, number)] * 2
    assert coordinator.last_kept == number


def test_nothing_is_kept_of_a_checkpoint_that_a_shard_missed() -> None:
    coordinator = new_coordinator(job(durability="checkpoint"))
    running(coordinator)
    number = sent(coordinator.take_checkpoint(), TakeCheckpoint)[0].number
    coordinator.receive(CheckpointTaken(0, 1, number, 0, number, True))
    assert not coordinator.receive(CheckpointTaken(1, 1, number, 0, number + 1, False))
    assert coordinator.checkpoint is None and coordinator.last_kept == -1
