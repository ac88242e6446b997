"""A shard under ssp and asp."""

from __future__ import annotations

from gradbase.store.machine import new_shard
from gradbase.store.machine.messages import (
    NO_BATCH,
    Append,
    CheckpointKept,
    Durable,
    Fence,
    Load,
    Loaded,
    PullReply,
    PushRecord,
    PushReply,
    Retire,
    ShardReport,
    TakeCheckpoint,
    WriteCheckpoint,
)
from tests.store.machine.machines import ListPages, asked, job, open_shard, pull, push, sent, serve


def test_a_reader_too_far_ahead_waits_for_the_slowest() -> None:
    shard, _ = open_shard(job("ssp", staleness_steps=1), clock=1)
    shard.receive(push(0, 1, batch=0))
    assert sent(shard.receive(pull(0, 2)), PullReply)[0].clock == (2, 1, 0)
    shard.receive(push(0, 2, batch=1))
    assert not sent(shard.receive(pull(0, 3)), PullReply)
    reply = sent(shard.receive(push(1, 1, batch=2)), PullReply)[0]
    assert (reply.seq, reply.clock) == (3, (3, 2, 0))


def test_asp_waits_for_nobody_but_the_reader() -> None:
    shard, _ = open_shard(job("asp"), clock=1)
    assert not sent(shard.receive(pull(0, 2)), PullReply), "its own push is not in yet"
    assert sent(shard.receive(push(0, 1, batch=0)), PullReply)


def test_one_who_rests_is_not_waited_for_until_heard_of_again() -> None:
    shard, _ = open_shard(job("ssp"), clock=1)
    shard.receive(push(0, 1, batch=0))
    assert not sent(shard.receive(pull(0, 2)), PullReply)
    assert sent(shard.receive(push(1, 1, batch=NO_BATCH)), PullReply)
    shard.receive(push(0, 2, batch=1))
    assert not sent(shard.receive(pull(1, 1)), PushReply), "a late read of before the rest"
    assert sent(shard.receive(pull(0, 3)), PullReply)
    shard.receive(pull(1, 2))
    shard.receive(push(0, 3, batch=2))
    assert not sent(shard.receive(pull(0, 4)), PullReply)


def test_a_push_counts_once_and_in_order() -> None:
    shard, pages = open_shard(job("asp"), clock=1)
    assert not shard.receive(push(0, 2, batch=1)), "one is missing before it"
    shard.receive(push(0, 1, batch=0))
    again = sent(shard.receive(push(0, 1, batch=0)), PushReply)
    assert again[0].complete and len(pages.values) == 1


def test_a_batch_counts_once_whoever_pushes_it() -> None:
    shard, pages = open_shard(job("asp"), clock=1)
    shard.receive(push(0, 1, batch=5))
    reply = sent(shard.receive(push(1, 1, batch=5)), PushReply)[0]
    assert reply.complete and len(pages.values) == 1
    report = sent(shard.receive(Fence(2, 1)), ShardReport)[0]
    assert report.used == ((5, 6),) and report.clock == (2, 2, 0)


def test_a_push_is_acknowledged_when_it_is_durable() -> None:
    shard, _ = open_shard(job("asp", durability="wal"), clock=1)
    effects = shard.receive(push(0, 1, batch=0))
    assert sent(effects, PushReply)[0].durable <= 1 and asked(effects, Append)
    assert [(told.durable, told.session) for told in sent(shard.synced(1), Durable)] == [(2, 1)]


def test_a_report_waits_until_nothing_in_it_can_be_lost() -> None:
    shard, _ = open_shard(job("asp", durability="wal"), clock=1)
    shard.receive(push(0, 1, batch=0))
    assert not sent(shard.receive(Fence(2, 1)), ShardReport)
    assert sent(shard.synced(1), ShardReport)[0].used == ((0, 1),)


def test_recovery_is_the_checkpoint_and_the_log_after_it() -> None:
    the_job = job("asp", durability="wal")
    shard, _ = open_shard(the_job, clock=1)
    shard.receive(push(0, 1, batch=0))
    shard.synced(1)
    write = asked(shard.receive(TakeCheckpoint(1, 1, 100)), WriteCheckpoint)[0]
    shard.checkpoint_written(100)
    assert asked(shard.receive(CheckpointKept(1, 100)), Retire) == [Retire(100, 1)]
    pages = ListPages()
    later = new_shard(the_job, 0, pages)
    records = [PushRecord(2, 1, 1, 1, 1, 1, 3, "u"), PushRecord(3, 1, 1, 1, 1, 2, 0, None)]
    assert asked(later.opened(2, [write.state], records), Load) == [Load(100)]
    later.loaded(Loaded(write.state, write.snapshot, records))
    assert pages.values == [[("g0.1",)], "u"]
    report = sent(later.receive(Fence(2, 2)), ShardReport)[0]
    assert (report.clock, report.used) == ((2, 3, 0), ((0, 1), (3, 4)))


def test_a_session_may_begin_later_than_its_slot_stood() -> None:
    shard, pages = open_shard(job("asp"), clock=1)
    serve(shard, 2, clock=4)
    shard.receive(push(0, 4, batch=0, term=2))
    assert len(pages.values) == 1
