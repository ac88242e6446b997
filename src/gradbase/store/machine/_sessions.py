"""Sessions under bsp (lanes of a step) and under ssp and asp (leased batches)."""

from __future__ import annotations

from collections import deque

from gradbase.store.machine import notes
from gradbase.store.machine._session import Session
from gradbase.store.machine.consistency import Job
from gradbase.store.machine.messages import (
    COORDINATOR,
    NO_BATCH,
    Compute,
    LeaseReply,
    LeaseRequest,
    Payload,
    Push,
    Report,
    Send,
    View,
    new,
)


class StepSession(Session):
    """bsp: reads version t, computes its lanes of step t, pushes them, and waits until every shard has all of the
    step.
    """

    def __init__(self, job: Job, worker: int, nonce: int, note: notes.Notes | None = None) -> None:
        super().__init__(job, worker, nonce, note)
        self.lanes: tuple[int, ...] = ()
        self._version_read = 0

    def _report(self) -> Report:
        retained = tuple(
            (shard, lane, seq)
            for seq, pushes in self._retained
            for shard in range(self._all)
            for lane in _whole_lanes(pushes[shard])
        )
        return Report(self.term, self.worker, self.session, self.seq, (), retained, ())

    def _begin(self, view: View) -> None:
        """Send what shards may lack of the steps before; what comes after will be computed again."""
        self.seq = view.seq
        self.lanes = view.lanes
        self._version_read = 0
        while self._retained and self._retained[-1][0] >= view.seq:
            self._retained.pop()
        for shard in range(self._all):
            self._send_retained(shard)
        self._read()

    def _has_read(self, values: tuple[Payload, ...]) -> None:
        self._version_read = self.seq
        if self.seq >= self.job.steps:
            self._beat()
        elif not self._full:
            self._compute(values)

    def _compute(self, values: tuple[Payload, ...]) -> None:
        self._expect(self.lanes)
        for lane in self.lanes:
            self._out.append(new(Compute, (self.term, self.seq, lane, self._batch(lane), values)))

    def _batch(self, lane: int) -> int:
        return self.seq * self.job.lanes + lane

    def _to_compute(self) -> tuple[int, ...]:
        return tuple([self._batch(lane) for lane in self.lanes]) if self.seq < self.job.steps else ()

    def _has_pushed(self) -> None:
        self.seq += 1
        self._read()

    def _released(self) -> None:
        waits = self._open and not self._reading and not self._incomplete and self.seq < self.job.steps
        if waits and not self._full:
            self._compute(tuple(self._values))

    def _lease_reply(self, message: LeaseReply) -> None:
        """No leases under bsp: lanes say who computes what."""

    def _reset(self) -> None:
        self._retained.clear()
        self._durable = [0] * self._all
        self._version_read = 0

    def _again(self) -> None:
        super()._again()
        if self._open and self._version_read >= self.job.steps:
            for shard in range(self._all):
                self._poll(shard, self.job.steps - 1)  # how far is it durable?

    def _progress(self) -> int:
        return self._version_read

    def _lease_done(self) -> int:
        """bsp has no leases; what the coordinator wants to know is up to where everything is durable."""
        return min(self._durable)


def _whole_lanes(pushes: list[Push]) -> list[int]:
    """Lanes of which every part is there."""
    lanes = sorted({push.lane for push in pushes})
    return [lane for lane in lanes if _parts(pushes, lane) == {push.parts for push in pushes if push.lane == lane}]


def _parts(pushes: list[Push], lane: int) -> set[int]:
    return {sum(push.lane == lane for push in pushes)}


class ClockSession(Session):
    """ssp, asp: takes leases of batches; reads, computes and pushes them one after the other."""

    def __init__(self, job: Job, worker: int, nonce: int, note: notes.Notes | None = None) -> None:
        super().__init__(job, worker, nonce, note)
        self.lease = 0  # the last one asked for and given; 0: what was held when the term began
        self._batches: deque[int] = deque()  # the first is under way
        self._leases: deque[tuple[int, int]] = deque()  # (lease, seq after its last batch), oldest first
        self._asking = False
        self._idle = False
        self._computing = False
        self._resting = False  # a push of nothing is under way
        self._last_done = -1

    def _report(self) -> Report:
        oldest = tuple(self._oldest(shard) for shard in range(self._all))
        retained = (pushes[0][0].batch for seq, pushes in self._retained if seq < self.seq)
        held = (*(batch for batch in retained if batch != NO_BATCH), *self._batches)
        return Report(self.term, self.worker, self.session, self.seq, oldest, (), tuple(sorted(set(held))))

    def _oldest(self, shard: int) -> int:
        waiting = (seq for seq, _ in self._retained if self._durable[shard] <= seq < self.seq)
        return next(waiting, self.seq)

    def _begin(self, view: View) -> None:
        if self.seq < view.seq:
            self.seq = view.seq
            self._durable = [max(durable, view.seq) for durable in self._durable]
        while self._retained and self._retained[-1][0] >= self.seq:
            self._retained.pop()  # the push under way is made again
        self.lease = 0
        self._leases.clear()
        self._leases.append((0, self.seq + len(self._batches)))
        self._last_done = -1
        self._asking = self._idle = self._computing = False
        for shard in range(self._all):
            self._send_retained(shard)
        if self._resting:  # some shards may have had it in the term before: its number can be nothing else any more
            self._push_nothing()
        else:
            self._next()

    def _next(self) -> None:
        """Begin what comes next, unless something is under way or too much is not durable yet."""
        if self._reading or self._incomplete or self._computing or self._full:
            return
        if self._batches:
            self._read()
        elif not self._asking:
            self._ask()

    def _ask(self) -> None:
        self._asking = True
        request = LeaseRequest(self.term, self.worker, self.session, self.lease + 1)
        self._out.append(Send(COORDINATOR, request))

    def _lease_reply(self, message: LeaseReply) -> None:
        expected = self._open and self._asking and not self._resting and message.lease == self.lease + 1
        if not expected or message.term != self.term or message.session != self.session:
            return
        if message.batches:
            self._moved()
            self._asking = self._idle = False
            self.lease += 1
            self._batches.extend(message.batches)
            self._leases.append((self.lease, self.seq + len(self._batches)))
            self._next()
        elif not self._idle:
            self._rest()

    def _rest(self) -> None:
        """Nothing to do for now: a push of nothing tells the shards not to wait for this session."""
        self._idle = True
        self._asking = False
        self._push_nothing()

    def _push_nothing(self) -> None:
        self._resting = True
        self._expect((0,))
        for shard in range(self._all):
            self._made(0, shard, 0, 1, None)

    def _has_read(self, values: tuple[Payload, ...]) -> None:
        self._computing = True
        self._expect((0,))
        self._out.append(new(Compute, (self.term, self.seq, 0, self._batches[0], values)))

    def _batch(self, lane: int) -> int:
        return NO_BATCH if self._resting else self._batches[0]

    def _to_compute(self) -> tuple[int, ...]:
        return (self._batches[0],)

    def _has_pushed(self) -> None:
        self.seq += 1
        if self._resting:
            self._resting = False
        else:
            self._computing = False
            self._batches.popleft()
        self._count_leases()
        if self._batches or not self._idle:
            self._next()

    def _released(self) -> None:
        self._count_leases()
        if self._open:
            self._next()

    def _again(self) -> None:
        super()._again()
        if self._open and not self._batches and not self._incomplete:
            self._ask()

    def _count_leases(self) -> None:
        """Tell the coordinator at once about a lease that is done: others may be waiting for the end."""
        if self._leases and self._leases[0][1] <= self._done():
            self._beat()

    def _done(self) -> int:
        """Every push with seq below this is complete, and durable where the job retains."""
        return self._retained[0][0] if self._retained else self.seq

    def _reset(self) -> None:
        self._retained.clear()
        self._durable = [0] * self._all
        self._batches.clear()
        self._leases.clear()
        self.seq = 0
        self.lease = 0
        self._asking = self._idle = self._computing = self._resting = False

    def _progress(self) -> int:
        return self.seq

    def _lease_done(self) -> int:
        """The last lease of which everything is done; -1: not even what was held when the term began."""
        done = self._done()
        while self._leases and self._leases[0][1] <= done:
            self._last_done = self._leases.popleft()[0]
        return self._last_done
