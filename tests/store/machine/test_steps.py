"""A shard under bsp."""

from __future__ import annotations

import pytest

from gradbase.common.errors import UsageError
from gradbase.store.machine import new_shard
from gradbase.store.machine.messages import (
    Append,
    Busy,
    CheckpointTaken,
    Fence,
    Load,
    Loaded,
    Open,
    PullReply,
    PushReply,
    Ready,
    ShardReport,
    StepRecord,
    Sync,
    TakeCheckpoint,
    WriteCheckpoint,
)
from tests.store.machine.machines import ListPages, asked, job, open_shard, pull, push, sent, serve, to_worker


def test_a_step_is_applied_in_lane_order_and_only_once_it_is_proven() -> None:
    shard, pages = open_shard(job())
    assert not to_worker(shard.receive(push(1, 0, lane=1)))
    replies = sent(shard.receive(push(0, 0, lane=0)), PushReply)
    assert [reply.complete for reply in replies] == [True, True]
    assert pages.values == [], "complete here says nothing of the other shard"
    reply = sent(shard.receive(pull(0, 1)), PullReply)[0]
    assert reply.value == [[("g0.0",), ("g1.0",)]]
    assert reply.clock == (1, 1)


def test_one_shard_needs_no_proof() -> None:
    shard, pages = open_shard(job(shards=1))
    shard.receive(push(0, 0, lane=0))
    shard.receive(push(1, 0, lane=1))
    assert len(pages.values) == 1


def test_a_push_that_comes_again_changes_nothing() -> None:
    shard, pages = open_shard(job())
    first = shard.receive(push(0, 0, lane=0))
    again = sent(shard.receive(push(0, 0, lane=0)), PushReply)
    assert not first and [(reply.complete, reply.lane) for reply in again] == [(False, 0)]
    shard.receive(push(1, 0, lane=1))
    shard.receive(pull(0, 1))
    late = sent(shard.receive(push(0, 0, lane=0)), PushReply)
    assert [reply.complete for reply in late] == [True] and len(pages.values) == 1


def test_a_push_in_parts_counts_when_all_are_there() -> None:
    shard, pages = open_shard(job(lanes=1, shards=1))
    shard.receive(push(0, 0, part=1, parts=2, payload="b"))
    assert not pages.values
    shard.receive(push(0, 0, part=0, parts=2, payload="a"))
    assert pages.values == [[("a", "b")]]


def test_messages_of_other_terms_and_sessions_fall_to_the_ground() -> None:
    shard, pages = open_shard(job(lanes=1, shards=1))
    for message in (push(0, 0, term=2), push(0, 0, term=0), push(0, 0, session=7), pull(0, 0, term=0)):
        assert shard.receive(message) == []
    assert not pages.values


def test_a_fenced_shard_serves_nobody_until_it_is_opened() -> None:
    shard, pages = open_shard(job(lanes=1, shards=1))
    serve(shard, 2)
    shard.receive(Open(3, 1, 0, ()))  # never fenced for it
    assert shard.open_term == 2
    assert shard.receive(push(0, 0)) == [] and not pages.values
    assert shard.receive(push(0, 0, term=2)) and pages.values


def test_a_message_for_another_incarnation_is_not_for_this_one() -> None:
    shard, _ = open_shard(job())
    assert shard.receive(Open(1, 9, 0, ())) == []
    assert sent(shard.receive(Open(1, 1, 0, ())), Ready)


def test_a_step_is_logged_when_complete_and_durable_when_synced() -> None:
    shard, _ = open_shard(job(durability="wal", logging="physical"))
    shard.receive(push(0, 0, lane=0))
    effects = shard.receive(push(1, 0, lane=1))
    record = asked(effects, Append)[0].record
    assert isinstance(record, StepRecord)
    assert (record.lsn, record.step, record.batches, record.update) == (1, 0, (0, 1), [("g0.0",), ("g1.0",)])
    assert asked(effects, Sync) == [Sync(1)]
    assert all(reply.durable == 0 for reply in sent(effects, PushReply))
    assert len(to_worker(shard.synced(1))) == 2
    assert sent(shard.receive(pull(0, 1)), PullReply)[0].durable == 1


def test_syncs_are_shared_and_a_full_queue_pushes_back() -> None:
    shard, _ = open_shard(job(lanes=1, shards=1, durability="wal", logging="physical"))
    assert asked(shard.receive(push(0, 0)), Sync) == [Sync(1)]
    assert asked(shard.receive(push(0, 1)), Sync) == []
    assert sent(shard.receive(push(0, 2)), Busy)
    effects = shard.synced(1)
    assert asked(effects, Sync) == [Sync(2)]
    assert not sent(shard.receive(push(0, 2)), Busy)


def test_a_refused_append_is_tried_again_with_all_that_follows() -> None:
    shard, _ = open_shard(job(lanes=1, shards=1, durability="wal", logging="physical"))
    shard.receive(push(0, 0))
    shard.log_failed(1)
    assert asked(shard.receive(push(0, 1)), Append) == []
    effects = shard.tick(0)
    assert [append.record.lsn for append in asked(effects, Append)] == [1, 2] and asked(effects, Sync) == [Sync(2)]


def test_a_log_of_another_job_is_refused() -> None:
    shard = new_shard(job(durability="wal"), 0, ListPages())
    with pytest.raises(UsageError, match="another job"):
        shard.opened(1, (), [StepRecord(1, 1, 1, 0, (0, 1, 2), 0, None)])


def test_physical_records_bring_a_shard_back() -> None:
    the_job = job(durability="wal", logging="physical")
    records = [StepRecord(step + 1, 1, 1, step, (2 * step, 2 * step + 1), 0, f"u{step}") for step in range(3)]
    pages = ListPages()
    shard = new_shard(the_job, 0, pages)
    shard.opened(2, (), records)
    report = sent(shard.receive(Fence(1, 2)), ShardReport)[0]
    assert report.reach == ((0, 1), (0, 4))
    assert asked(shard.receive(Open(1, 2, 2, ())), Load) == [Load(None)]
    assert sent(shard.loaded(Loaded(None, None, records)), Ready)
    assert pages.values == ["u0", "u1"], "the term begins at version 2"


def test_command_records_do_not_and_what_is_computed_again_is_not_logged_again() -> None:
    the_job = job(lanes=1, shards=1, durability="wal")
    shard = new_shard(the_job, 0, ListPages())
    shard.opened(2, (), [StepRecord(1, 1, 1, 0, (0,), 0, None)])
    assert sent(shard.receive(Fence(1, 2)), ShardReport)[0].reach == ((0, 1),)
    shard.receive(Open(1, 2, 0, ((0, 1, 0),)))
    shard.loaded(Loaded(None, None, ()))
    assert not asked(shard.receive(push(0, 0)), Append)
    assert asked(shard.receive(push(0, 1)), Append)[0].record.lsn == 2


def test_a_checkpoint_waits_for_its_version_and_for_the_log() -> None:
    shard, _ = open_shard(job(lanes=1, shards=1, durability="wal"))
    assert not shard.receive(TakeCheckpoint(1, 1, 1))
    assert not asked(shard.receive(push(0, 0)), WriteCheckpoint), "its record is not durable yet"
    write = asked(shard.synced(1), WriteCheckpoint)[0]
    assert (write.state.number, write.state.lsn, write.state.step) == (1, 1, 1) and write.snapshot == [[("g0.0",)]]
    assert sent(shard.checkpoint_written(1), CheckpointTaken)[0].good
    past = sent(shard.receive(TakeCheckpoint(1, 1, 0)), CheckpointTaken)
    assert [taken.good for taken in past] == [False]
