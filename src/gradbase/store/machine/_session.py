"""What a worker's session does at every consistency level: joining, terms, reads, pushes and their repetition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from gradbase.store.machine import notes
from gradbase.store.machine.consistency import Job
from gradbase.store.machine.messages import (
    COORDINATOR,
    Beat,
    Busy,
    Durable,
    Effect,
    Fenced,
    Finished,
    Join,
    LeaseReply,
    Leave,
    Message,
    NewTerm,
    Payload,
    Poll,
    Pull,
    PullReply,
    Push,
    PushReply,
    Report,
    Send,
    Stop,
    View,
    new,
)
from gradbase.store.machine.timing import Stopwatch


class Session(ABC):
    """One process of a worker. Made by `new_session`; every public method returns the effects to carry out, in order.

    One thing is under way at a time: a read of all shards, a computation, or a push to all shards. `nonce` is the
    process's own random number. With `selective` a read's `selection` names the batches that are to be computed on it,
    and the engine puts what they need of sparse rows in its place; else it is None.
    """

    _HANDLERS: ClassVar[dict[type, str]] = {
        PullReply: "_pull_reply",
        PushReply: "_push_reply",
        Durable: "_durable_now",
        Busy: "_busy",
        NewTerm: "_new_term",
        View: "_view",
        LeaseReply: "_lease_reply",
        Fenced: "_fenced",
        Finished: "_finish",
    }
    _on: ClassVar[dict[type, Callable[[Any, Any], None]]]

    def __init_subclass__(cls) -> None:
        """Look the handlers up once a class: a machine is then no cycle of references, and is quick to make."""
        cls._on = {kind: getattr(cls, name) for kind, name in cls._HANDLERS.items()}

    def __init__(self, job: Job, worker: int, nonce: int, note: notes.Notes | None = None) -> None:
        self.job = job
        self.worker = worker
        self.nonce = nonce
        self.session = 0  # 0: not admitted
        self.term = 0
        self.seq = 0  # the version to read and compute on, or the clock
        self.finished = False
        self.selective = False
        self.selection: object = None
        self._note = note
        self._out: list[Effect] = []
        self._shards: list[object] = [("shard", shard) for shard in range(job.shards)]  # addresses
        self._open = False  # the term has a view, and this session has it
        self._all = job.shards
        self._retains = job.retains
        self._reading: set[int] = set()  # shards whose answer is awaited
        self._values: list[Payload] = [None] * job.shards
        self._pushes: list[dict[tuple[int, int], Push]] = [
            {} for _ in range(job.shards)
        ]  # by lane and part, unanswered
        self._unpushed: dict[tuple[int, int], int] = {}  # (shard, lane): parts not computed yet; 0 is not kept
        self._incomplete: set[int] = set()  # shards that have not said that this push is complete
        self._retained: deque[tuple[int, list[list[Push]]]] = deque()  # (seq, pushes by shard), oldest first
        self._durable = [0] * job.shards
        self._watch = Stopwatch(job.limits.tick_us_max)
        self._quiet_us = 0  # since anything moved
        self._retry_us = job.limits.retry_us
        self._beat_us = 0

    # What happens to a session.

    def start(self) -> list[Effect]:
        self._join()
        return self._take()

    def receive(self, message: Message) -> list[Effect]:
        handler = self._on.get(type(message))
        if handler is not None and not self.finished:
            handler(self, message)
        out = self._out
        self._out = []
        return out

    def computed(
        self, term: int, seq: int, lane: int, shard: int, part: int, parts: int, payload: Payload
    ) -> list[Effect]:
        """Part `part` of `parts` of what a `Compute` gives for one shard. Parts may come in any order, each once."""
        if term == self.term and seq == self.seq and self._open:
            self._made(lane, shard, part, parts, payload)
        return self._take()

    def leave(self) -> list[Effect]:
        """Go, and let others have what this session held. Nothing more is to be asked of it."""
        if self.session and not self.finished:
            self._out.append(new(Send, (COORDINATOR, Leave(self.worker, self.session))))
        self.finished = True
        return self._take()

    def tick(self, now_us: int) -> list[Effect]:
        passed = self._watch.passed_us(now_us)
        self._beat_us -= passed
        self._quiet_us += passed
        if (self._beat_us > 0 and self._quiet_us < self._retry_us) or self.finished:
            return []
        if self._beat_us <= 0:
            self._beat_us = self.job.limits.beat_us
            self._beat()
        if self._quiet_us >= self._retry_us:
            self._quiet_us = 0
            self._retry_us = min(2 * self._retry_us, self.job.limits.retry_us_max)
            self._again()
        return self._take()

    # Joining and terms.

    def _join(self) -> None:
        self._out.append(new(Send, (COORDINATOR, Join(self.worker, self.nonce))))

    def _new_term(self, message: NewTerm) -> None:
        if message.nonce != self.nonce or message.term < self.term:
            return
        if not self.session:
            self.session = message.session
        if message.session == self.session:
            if message.term > self.term:
                self.term = message.term
                self._open = False
                self._stop()
            if not self._open:
                self._out.append(new(Send, (COORDINATOR, self._report())))

    def _view(self, message: View) -> None:
        if message.session != self.session or message.term != self.term or self._open:
            return
        self._open = True
        self._moved()
        self._begin(message)

    def _fenced(self, message: Fenced) -> None:
        """The coordinator took this session for dead. Nothing of it counts; start again as another process would."""
        if message.session == self.session:
            self.session = 0
            self.term = 0
            self.nonce += 1
            self._open = False
            self._stop()
            self._reset()
            self._join()

    def _finish(self, message: Finished) -> None:
        if message.session == self.session:
            self.finished = True
            self._out.append(Stop("finished"))

    def _beat(self) -> None:
        """Until the term is open here, leases and versions are those of the term before: they are not told."""
        if self.session:
            progress, done = (self._progress(), self._lease_done()) if self._open else (0, -1)
            beat = new(Beat, (self.term, self.worker, self.session, progress, done))
            self._out.append(new(Send, (COORDINATOR, beat)))

    def _stop(self) -> None:
        self._reading.clear()
        self._incomplete.clear()
        self._unpushed.clear()
        for pushes in self._pushes:
            pushes.clear()

    def _moved(self) -> None:
        self._quiet_us = 0
        self._retry_us = self.job.limits.retry_us

    def _again(self) -> None:
        """Nothing moved for a while: ask again for whatever is awaited."""
        if not self.session:
            self._join()
        elif not self._open:
            if self.term:
                self._out.append(new(Send, (COORDINATOR, self._report())))
        else:
            for shard in sorted(self._reading):
                self._send_pull(shard)
            self._push_again()

    def _push_again(self) -> None:
        for shard in sorted(self._incomplete):
            if self._pushes[shard]:
                self._out.extend(new(Send, (self._shards[shard], push)) for push in self._pushes[shard].values())
            elif not self._unpushed:
                self._poll(shard, self.seq)
        if self._retained:
            for shard in range(self._all):
                newest = self._retained[-1][0]
                if self._durable[shard] <= newest:
                    self._send_retained(shard)

    def _poll(self, shard: int, seq: int) -> None:
        self._out.append(new(Send, (self._shards[shard], Poll(self.term, self.worker, self.session, seq))))

    # Reads.

    def _read(self) -> None:
        if self.selective:
            self.selection = self._to_compute()
        pull = new(Pull, (self.term, self.worker, self.session, self.seq, self.selection))
        self._reading.update(range(self._all))
        self._out.extend([new(Send, (shard, pull)) for shard in self._shards])

    def _send_pull(self, shard: int) -> None:
        pull = new(Pull, (self.term, self.worker, self.session, self.seq, self.selection))
        self._out.append(new(Send, (self._shards[shard], pull)))

    def _pull_reply(self, message: PullReply) -> None:
        _, _, shard, _, clock, value, durable = message
        if shard not in self._reading or not self._awaited(message):
            return  # late, or doubled
        if durable > self._durable[shard]:
            self._learn(shard, durable)  # while this read is under way: what is released must not begin another
        self._reading.remove(shard)
        self._values[shard] = value
        if self._note is not None:
            self._note(new(notes.Read, (self.worker, self.session, shard, self.term, self.seq, clock, value)))
        self._quiet_us = 0
        if not self._reading:
            self._retry_us = self.job.limits.retry_us
            self._has_read(tuple(self._values))

    def _awaited(self, message: PullReply | PushReply) -> bool:
        """Whether this answers what is under way, and not something older."""
        return message.term == self.term and message.session == self.session and message.seq == self.seq

    # Pushes.

    def _expect(self, lanes: tuple[int, ...]) -> None:
        """From now on these lanes' pushes are to come."""
        self._unpushed = {(shard, lane): -1 for shard in range(self._all) for lane in lanes}
        self._incomplete = set(range(self._all))

    def _made(self, lane: int, shard: int, part: int, parts: int, payload: Payload) -> None:
        left = self._unpushed.get((shard, lane), 0)
        if not left:
            return
        left = parts - 1 if left < 0 else left - 1
        if left:
            self._unpushed[shard, lane] = left
        else:
            del self._unpushed[shard, lane]
        push = new(
            Push, (self.term, self.worker, self.session, self.seq, lane, self._batch(lane), part, parts, payload)
        )
        self._push(shard, push)
        self._quiet_us = 0
        if not self._unpushed and not self._incomplete:
            self._has_pushed()

    def _push(self, shard: int, push: Push) -> None:
        if self._note is not None and shard == 0 and push.part == 0:
            self._note(new(notes.Pushed, (self.worker, self.session, self.term, push.seq, push.lane, push.batch)))
        if self._retains:
            self._retain(shard, push)
        if shard in self._incomplete:  # else it had all of this in the term before, and has said so
            self._pushes[shard][push.lane, push.part] = push
            self._out.append(new(Send, (self._shards[shard], push)))

    def _retain(self, shard: int, push: Push) -> None:
        if not self._retained or self._retained[-1][0] != push.seq:
            self._retained.append((push.seq, [[] for _ in range(self._all)]))
        self._retained[-1][1][shard].append(push)

    def _push_reply(self, message: PushReply) -> None:
        term, session, shard, seq, lane, part, complete, durable = message
        if term != self.term or session != self.session or not self._open:
            return
        if durable > self._durable[shard]:
            self._learn(shard, durable)
        if seq != self.seq or shard not in self._incomplete:
            return
        if not complete:
            self._pushes[shard].pop((lane, part), None)
            return
        self._pushes[shard].clear()
        self._incomplete.remove(shard)
        self._quiet_us = 0
        if not self._incomplete and not self._unpushed:
            self._has_pushed()

    def _busy(self, message: Busy) -> None:
        """The shard keeps nothing more for now; the push is sent again when its time comes."""
        if message.term == self.term and message.session == self.session:
            self._quiet_us = 0

    # What is durable.

    def _durable_now(self, message: Durable) -> None:
        if message.term == self.term and message.session == self.session and self._open:
            self._learn(message.shard, message.durable)

    def _learn(self, shard: int, durable: int) -> None:
        if durable <= self._durable[shard]:
            return
        self._durable[shard] = durable
        lowest = min(self._durable)
        retained = self._retained
        released = False
        while retained and retained[0][0] < lowest:
            retained.popleft()
            released = True
        if released:
            self._moved()
            self._released()

    def _send_retained(self, shard: int) -> None:
        """Send again, oldest first, what this shard's log may lack."""
        for seq, pushes in self._retained:
            if seq >= self._durable[shard]:
                for push in pushes[shard]:
                    self._out.append(new(Send, (self._shards[shard], self._of_this_term(push))))

    def _of_this_term(self, push: Push) -> Push:
        return push._replace(term=self.term) if push.term != self.term else push

    @property
    def _full(self) -> bool:
        return len(self._retained) >= self.job.limits.retained_max

    def _take(self) -> list[Effect]:
        out = self._out
        self._out = []
        return out

    # What differs between the levels.

    @abstractmethod
    def _batch(self, lane: int) -> int: ...

    @abstractmethod
    def _to_compute(self) -> tuple[int, ...]:
        """The batches that the read about to begin is for."""

    @abstractmethod
    def _report(self) -> Report: ...

    @abstractmethod
    def _begin(self, view: View) -> None: ...

    @abstractmethod
    def _has_read(self, values: tuple[Payload, ...]) -> None: ...

    @abstractmethod
    def _has_pushed(self) -> None: ...

    @abstractmethod
    def _released(self) -> None:
        """Fewer pushes are retained than before."""

    @abstractmethod
    def _lease_reply(self, message: LeaseReply) -> None: ...

    @abstractmethod
    def _reset(self) -> None:
        """Forget everything: a new session begins."""

    @abstractmethod
    def _progress(self) -> int: ...

    @abstractmethod
    def _lease_done(self) -> int: ...
