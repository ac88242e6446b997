"""The machines of a store behind a socket: one thread runs them, one thread a connection reads, one writes."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.layout import Layout, flatten, page_view, tensor_view
from gradbase.store.machine import Coordinator, Job, Phase, Shard, new_coordinator, new_shard
from gradbase.store.machine.messages import (
    COORDINATOR,
    Beat,
    Effect,
    Join,
    LeaseRequest,
    Leave,
    Load,
    Loaded,
    Message,
    Poll,
    Pull,
    Push,
    Replace,
    Report,
    Send,
    Sync,
    WriteCheckpoint,
)
from gradbase.store.machine.messages import Address as Machine
from gradbase.store.server._pages import TensorPages
from gradbase.store.update import Settings, Updater, UpdateRule, allocate
from gradbase.store.wire import Address, Connection, Letter, Limits, Listener

_log = logging.getLogger("gradbase.store")

_TICK_S = 0.01
_OUTBOX_MAX = 64  # messages that wait for a slow reader; what comes then is lost, and asked for again
_FLUSH_S = 1.0
_INBOX_MAX = 256  # messages that wait for the machines; who sends more waits
_TO_COORDINATOR = (Join, Report, Beat, LeaseRequest, Leave)
_TO_SHARD = (Pull, Push, Poll)
_PARTS_MAX = 1 << 16


class StoreServer:
    """Coordinator and shards of a job, listening from construction to `close`; parameters live in this process.

    values: tensors by name, as of `model.state_dict()`, to begin with; zeros otherwise. Durability is `none`: what must
    survive this process is trained on an engine that keeps a log.
    """

    def __init__(
        self,
        job: Job,
        layout: Layout,
        rule: UpdateRule,
        token: str,
        address: Address | None = None,
        *,
        values: Mapping[str, torch.Tensor] | None = None,
        limits: Limits | None = None,
    ) -> None:
        _check(job, layout)
        self.job, self.layout = job, layout
        self._updaters = [_updater(layout, rule, shard, values or {}) for shard in range(job.shards)]
        copies = job.consistency != "bsp"
        self._pages = [TensorPages(updater, job.lanes, copies=copies) for updater in self._updaters]
        self._coordinator = new_coordinator(job)
        self._shards = [new_shard(job, k, pages) for k, pages in enumerate(self._pages)]
        self._inbox: queue.Queue[Callable[[], None]] = queue.Queue(_INBOX_MAX)
        self._local: deque[tuple[Machine, Message]] = deque()
        self._peers: dict[int, _Peer] = {}
        self._done, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradbase-store", daemon=True)
        self._thread.start()
        self._listener = Listener(address or Address(), token, self._serve, limits)
        self.address = self._listener.address

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the job is finished, after waiting for it."""
        return self._done.wait(timeout_s)

    def set_settings(self, groups: Sequence[Settings]) -> None:
        """Change learning rates and the like, between two updates."""

        def change() -> None:
            for updater in self._updaters:
                updater.set_settings(groups)

        self._ask(change)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors, of one moment: for `model.load_state_dict`, tied names included."""
        slab = torch.zeros(self.layout.slab_nbytes, dtype=torch.uint8)

        def gather() -> None:
            for updater in self._updaters:
                for page in updater.pages:
                    page_view(self.layout, slab, page).copy_(updater.value(page))

        self._ask(gather)
        names = [(name, spec.name) for spec in self.layout.tensors for name in (spec.name, *spec.aliases)]
        return {name: tensor_view(self.layout, slab, first) for name, first in names}

    def close(self) -> None:
        """Send what waits, end all connections and stop. Twice is fine."""
        self._closed.set()
        self._thread.join()
        for peer in self._peers.values():
            peer.close()
        self._listener.close()

    def __enter__(self) -> StoreServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # The thread of the machines.

    def _run(self) -> None:
        self._carry(COORDINATOR, self._coordinator.opened(()))
        for shard in self._shards:
            self._carry(("shard", shard.shard), shard.opened(1, (), ()))
        ticked = 0.0
        while not self._closed.is_set():
            with contextlib.suppress(queue.Empty):
                self._inbox.get(timeout=_TICK_S)()
            if time.monotonic() - ticked >= _TICK_S:
                ticked = time.monotonic()
                self._tick(int(ticked * 1e6))

    def _tick(self, now_us: int) -> None:
        self._carry(COORDINATOR, self._coordinator.tick(now_us))
        for shard in self._shards:
            self._carry(("shard", shard.shard), shard.tick(now_us))
        if self._coordinator.phase is Phase.DONE:
            self._done.set()

    def _carry(self, owner: Machine, effects: Iterable[Effect]) -> None:
        """Carry out effects, and deliver what the machines here say to each other, until nobody says anything."""
        self._effects(owner, effects)
        while self._local:
            to, message = self._local.popleft()
            self._effects(to, self._machine(to).receive(message))

    def _effects(self, owner: Machine, effects: Iterable[Effect]) -> None:
        pending = deque(effects)
        while pending:
            pending.extend(self._effect(owner, pending.popleft()))

    def _effect(self, owner: Machine, effect: Effect) -> Iterable[Effect]:
        """Carry one out; what the machine says to its result."""
        if isinstance(effect, Send):
            self._send(owner, effect.to, effect.message)
        elif isinstance(effect, Sync):
            return self._machine(owner).synced(effect.lsn)  # with durability `none` nothing has to be written
        elif isinstance(effect, Replace) and effect.who[0] == "worker":
            self._drop(effect.who[1])
        elif isinstance(effect, Load):
            return self._shards[owner[1]].loaded(Loaded(None, None, ()))
        elif isinstance(effect, WriteCheckpoint):
            return self._shards[owner[1]].checkpoint_failed(effect.state.number)
        return ()

    def _send(self, sender: Machine, to: Machine, message: Message) -> None:
        if to[0] != "worker":
            self._local.append((to, message))
        elif to[1] in self._peers:
            self._peers[to[1]].post(Letter(message, to, sender))

    def _machine(self, address: Machine) -> Coordinator | Shard:
        return self._coordinator if address == COORDINATOR else self._shards[address[1]]

    def _drop(self, worker: int) -> None:
        peer = self._peers.pop(worker, None)
        if peer is not None:
            peer.connection.close()

    def _ask(self, call: Callable[[], object]) -> None:
        """Run something between two messages, and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                call()
            finally:
                done.set()

        self._inbox.put(run)
        while not done.wait(_TICK_S):
            if self._closed.is_set():
                raise StoreError("the store is closed")

    # The threads of the connections.

    def _serve(self, connection: Connection) -> None:
        peer = _Peer(connection)
        try:
            while (letter := connection.receive()) is not None:
                self._take(peer, self._checked(letter))
        finally:
            peer.close()
            self._put(lambda: self._lost(peer))

    def _take(self, peer: _Peer, letter: Letter) -> None:
        self._put(lambda: self._deliver(peer, letter))

    def _put(self, call: Callable[[], None]) -> None:
        """Wait for a place in the inbox, unless nobody will read it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                return self._inbox.put(call, timeout=_TICK_S)

    def _deliver(self, peer: _Peer, letter: Letter) -> None:
        worker = letter.sender[1]
        if isinstance(letter.message, Join):
            self._peers[worker], peer.nonce = peer, letter.message.nonce
        if self._peers.get(worker) is peer:
            self._carry(letter.to, self._machine(letter.to).receive(letter.message))

    def _lost(self, peer: _Peer) -> None:
        for worker in [worker for worker, other in self._peers.items() if other is peer]:
            del self._peers[worker]
            self._carry(COORDINATOR, self._coordinator.worker_lost(worker, peer.nonce))

    def _checked(self, letter: Letter) -> Letter:
        """A letter that a machine may see, its push decoded; StoreError for anything that a worker does not say."""
        message, to, sender = letter
        allowed = _TO_COORDINATOR if to == COORDINATOR else _TO_SHARD
        known = to == COORDINATOR or (to[0] == "shard" and to[1] < self.job.shards)
        if not known or sender[0] != "worker" or not isinstance(message, allowed):
            raise StoreError(f"a {type(message).__name__} from {sender} to {to} was refused")
        if message.worker != sender[1] or message.worker >= self.job.slots:
            raise StoreError(f"{sender} speaks as worker {message.worker} of {self.job.slots}")
        if isinstance(message, Push):
            return letter._replace(message=self._checked_push(message, to[1]))
        if isinstance(message, Pull):
            self._pages[to[1]].check(message.selection)
        return letter

    def _checked_push(self, push: Push, shard: int) -> Push:
        if not (0 <= push.lane < max(self.job.lanes, self.job.slots) and 0 <= push.part < push.parts <= _PARTS_MAX):
            raise StoreError(f"a push of lane {push.lane}, part {push.part} of {push.parts} cannot be")
        if push.payload is None:
            return push
        return push._replace(payload=self._pages[shard].unpack(push.payload))


class _Peer:
    """A connection with the messages that wait to go out on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.nonce = connection, 0
        self._outbox: queue.Queue[Letter | None] = queue.Queue(_OUTBOX_MAX)
        self._thread = threading.Thread(target=self._write, name="gradbase-writer", daemon=True)
        self._thread.start()

    def post(self, letter: Letter) -> None:
        """Send it when its turn comes. To a reader that is too slow nothing more is promised: it will ask again."""
        with contextlib.suppress(queue.Full):
            self._outbox.put_nowait(letter)

    def close(self) -> None:
        """Send what waits, for as long as the peer takes it within a second, and end the connection."""
        with contextlib.suppress(queue.Full):
            self._outbox.put_nowait(None)
            self._thread.join(_FLUSH_S)
        self.connection.close()

    def _write(self) -> None:
        while (letter := self._outbox.get()) is not None:
            try:
                self.connection.send(*letter)
            except StoreError as error:
                _log.info("%s", error.problem)
                return


def _check(job: Job, layout: Layout) -> None:
    if job.durability != "none":
        raise UsageError(
            f"a store that listens keeps nothing on disk, and cannot promise durability {job.durability!r}",
            'use durability "none" here, or the local engine with a directory',
        )
    if job.shards != layout.shard_count:
        raise UsageError(f"the job has {job.shards} shards, the layout {layout.shard_count}")


def _updater(layout: Layout, rule: UpdateRule, shard: int, values: Mapping[str, torch.Tensor]) -> Updater:
    updater = Updater(layout, rule, allocate(layout, rule, shard), shard=shard)
    updater.initialize()
    for page in updater.pages:
        spec = layout.tensors[page.tensor]
        if spec.name in values:
            flat = flatten(spec, values[spec.name])
            updater.assign(page.number, flat[page.start : page.start + page.numel])
    return updater
