"""A worker's session."""

from __future__ import annotations

import pytest

from gradbase.store.machine import Session, new_session
from gradbase.store.machine.messages import (
    NO_BATCH,
    Beat,
    Compute,
    Durable,
    Effect,
    Fenced,
    Join,
    LeaseReply,
    LeaseRequest,
    NewTerm,
    Poll,
    Pull,
    PullReply,
    Push,
    PushReply,
    Report,
    View,
)
from tests.store.machine.machines import asked, job, sent

RETRY_US = 50_000


def opened(session: Session, term: int = 1, seq: int = 0, lanes: tuple[int, ...] = (0,)) -> list[Effect]:
    session.receive(NewTerm(term, 1, session.nonce))
    return session.receive(View(term, 1, seq, lanes, (1, 1)))


def value(shard: int, seq: int, term: int = 1, durable: int = 0) -> PullReply:
    return PullReply(term, 1, shard, seq, (seq, seq), f"v{shard}.{seq}", durable)


def complete(shard: int, seq: int, durable: int = 0, whole: bool = True, term: int = 1) -> PushReply:
    return PushReply(term, 1, shard, seq, -1 if whole else 0, -1 if whole else 0, whole, durable)


def computed(session: Session, seq: int, term: int = 1, lane: int = 0) -> list[Effect]:
    return [effect for shard in range(2) for effect in session.computed(term, seq, lane, shard, 0, 1, f"g{shard}")]


def step(session: Session, seq: int) -> None:
    for shard in range(2):
        session.receive(value(shard, seq))
    computed(session, seq)
    for shard in range(2):
        session.receive(complete(shard, seq))


def test_a_step_is_read_computed_and_pushed() -> None:
    session = new_session(job(), 0, 77)
    assert sent(session.start(), Join) == [Join(0, 77)]
    assert [pull.seq for pull in sent(opened(session), Pull)] == [0, 0]
    assert not asked(session.receive(value(1, 0)), Compute)
    assert asked(session.receive(value(0, 0)), Compute) == [Compute(1, 0, 0, 0, ("v0.0", "v1.0"))]
    assert [push.payload for push in sent(computed(session, 0), Push)] == ["g0", "g1"]
    assert not session.receive(complete(0, 0))
    assert [pull.seq for pull in sent(session.receive(complete(1, 0)), Pull)] == [1, 1]


def test_late_and_doubled_replies_change_nothing() -> None:
    session = new_session(job(), 0, 77)
    opened(session)
    step(session, 0)
    for late in (value(0, 0), value(0, 1, term=0), complete(0, 0)):
        assert not session.receive(late)
    session.receive(value(0, 1))
    assert not session.receive(value(0, 1)), "the other shard's is still missing"
    assert asked(session.receive(value(1, 1)), Compute)[0].values == ("v0.1", "v1.1")


def test_what_was_computed_for_another_term_is_dropped() -> None:
    session = new_session(job(), 0, 77)
    opened(session)
    for shard in range(2):
        session.receive(value(shard, 0))
    opened(session, term=2)
    assert not computed(session, 0, term=1)


def test_bytes_are_sent_again_only_until_the_shard_has_them() -> None:
    session = new_session(job(), 0, 77)
    opened(session)
    for shard in range(2):
        session.receive(value(shard, 0))
    computed(session, 0)
    session.receive(complete(0, 0, whole=False))
    session.tick(0)
    effects = session.tick(RETRY_US)
    assert len(sent(effects, Poll)) == 1 and len(sent(effects, Push)) == 1


def test_retained_pushes_are_bounded_and_go_out_again_in_a_new_term() -> None:
    the_job = job(durability="wal", logging="physical", steps=20)
    session = new_session(the_job, 0, 77)
    opened(session, lanes=(0, 1))
    most = the_job.limits.retained_max
    for seq in range(most):
        for shard in range(2):
            effects = session.receive(value(shard, seq))
        assert asked(effects, Compute)
        for lane in range(2):
            computed(session, seq, lane=lane)
        for shard in range(2):
            session.receive(complete(shard, seq))
    for shard in range(2):
        effects = session.receive(value(shard, most))
    assert not asked(effects, Compute), "too much is not durable yet"
    session.receive(Durable(1, 1, 0, 2))
    assert asked(session.receive(Durable(1, 1, 1, 2)), Compute), "steps 0 and 1 are durable on both"
    report = sent(session.receive(NewTerm(2, 1, 77)), Report)[0]
    assert (0, 0, 2) in report.retained and (0, 0, 1) not in report.retained
    again = sent(session.receive(View(2, 1, 4, (0, 1), (2, 1))), Push)  # later steps are computed again
    assert {push.seq for push in again} == {2, 3} and {push.term for push in again} == {2}


def test_a_fenced_session_forgets_everything_and_joins_as_another() -> None:
    session = new_session(job(), 0, 77)
    opened(session)
    step(session, 0)
    assert sent(session.receive(Fenced(1)), Join) == [Join(0, 78)]
    assert not session.receive(NewTerm(5, 5, 77)), "that was for the one before"
    assert sent(session.receive(NewTerm(5, 5, 78)), Report)[0].session == 5


def leased(session: Session, batches: tuple[int, ...], lease: int = 1) -> list[Effect]:
    return session.receive(LeaseReply(1, 1, lease, batches))


def test_leased_batches_are_used_one_after_the_other() -> None:
    session = new_session(job("asp"), 0, 77)
    assert sent(opened(session, seq=1), LeaseRequest)[0].lease == 1
    leased(session, (4, 5))
    for seq, batch in ((1, 4), (2, 5)):
        for shard in range(2):
            effects = session.receive(value(shard, seq))
        assert asked(effects, Compute)[0].batch == batch
        computed(session, seq)
        session.receive(complete(0, seq))
        effects = session.receive(complete(1, seq))
    assert sent(effects, LeaseRequest)[0].lease == 2
    assert sent(effects, Beat)[0].lease_done == 1


def test_without_a_lease_it_rests_and_the_rest_has_a_number_of_its_own() -> None:
    session = new_session(job("asp"), 0, 77)
    opened(session, seq=1)
    rest = sent(leased(session, ()), Push)
    assert [(push.batch, push.seq) for push in rest] == [(NO_BATCH, 1)] * 2
    for shard in range(2):
        session.receive(complete(shard, 1))
    session.tick(0)
    assert sent(session.tick(RETRY_US), LeaseRequest)[0].lease == 1
    assert [pull.seq for pull in sent(leased(session, (3,)), Pull)] == [2, 2]


def test_a_new_term_keeps_what_is_held() -> None:
    session = new_session(job("asp", durability="wal"), 0, 77)
    opened(session, seq=1)
    leased(session, (4, 5, 6))
    step(session, 1)
    report = sent(session.receive(NewTerm(2, 1, 77)), Report)[0]
    assert report.held == (4, 5, 6) and report.next_seq == 2 and report.oldest == (1, 1)
    assert sent(session.tick(10**9), Beat)[0].lease_done == -1, "numbers of the old term's leases mean nothing now"
    effects = session.receive(View(2, 1, 2, (), (1, 1)))
    assert [push.batch for push in sent(effects, Push)] == [4, 4]
    assert [pull.seq for pull in sent(effects, Pull)] == [2, 2]


def test_a_shard_that_has_a_push_from_the_term_before_may_say_so_early() -> None:
    session = new_session(job("asp"), 0, 77)
    opened(session, seq=1)
    leased(session, (4, 5))
    for shard in range(2):
        session.receive(value(shard, 1))
    session.tick(0)
    assert not sent(session.tick(RETRY_US), Poll), "nothing was pushed yet"
    session.computed(1, 1, 0, 0, 0, 2, "half")
    assert not session.receive(complete(0, 1)), "the other half, and the other shard's, are still being computed"
    session.computed(1, 1, 0, 0, 1, 2, "half")
    session.computed(1, 1, 0, 1, 0, 1, "whole")
    assert [pull.seq for pull in sent(session.receive(complete(1, 1)), Pull)] == [2, 2]


@pytest.mark.parametrize("consistency", ("bsp", "ssp", "asp"))
def test_a_last_answer_that_also_releases_pushes_begins_one_computation_and_no_other_read(consistency: str) -> None:
    session = new_session(job(consistency, durability="wal", logging="physical"), 0, 77)
    opened(session, seq=1)
    if consistency != "bsp":
        leased(session, (4, 5))
    step(session, 1)
    assert not session.receive(value(0, 2, durable=2))
    effects = session.receive(value(1, 2, durable=2))
    assert len(asked(effects, Compute)) == 1 and not sent(effects, Pull)
