"""What servants are asked to do: gradients, and the operations of the shards' queues, each as soon as it may begin."""

from __future__ import annotations

from gradbase.cluster.operations import Operation, Operations, Pushed, Reading
from gradbase.cluster.steward._crew import Crew, Worker
from gradbase.cluster.steward._machines import Machines
from gradbase.cluster.steward._storage import Storage
from gradbase.store.machine import messages as m


class Work:
    """`residuals`: what a lane pushes depends on what its codecs left out before. `newest_seq`, `newest_batch`: the
    last that any gradient was asked of, -1 before. With `stopping` no further gradient is.
    """

    def __init__(
        self, machines: Machines, crew: Crew, operations: Operations, storage: Storage, *, residuals: bool
    ) -> None:
        self._machines, self._crew, self._operations, self._storage = machines, crew, operations, storage
        self._residuals = residuals
        self.newest_seq = self.newest_batch = -1
        self.stopping = False
        self._held: list[tuple[Worker, m.Compute]] = []
        self._filled: dict[int, tuple[int, int]] = {}  # lane -> (seq, batch) whose gradient lies in its buffers
        self._last: dict[int, Worker] = {}  # lane -> who computed its last gradient
        self._tickets = 0

    # -- what there is to do

    def hold(self, owner: m.Address, compute: m.Compute) -> None:
        """A session wants a gradient: it is begun once it can be."""
        self._held.append((self._crew.workers[owner[1]], compute))

    def read(self, slot: int, reply: m.PullReply) -> None:
        """A reader is known: its fetch may begin. Its staleness is how far it is ahead of the slowest at work."""
        assert isinstance(reply.value, Reading)
        fetch = reply.value.after
        if self._operations.copies and fetch is not None:
            workers = self._crew.workers
            fetch.worker = slot
            at_work = [each.slot for each in workers.values() if each.busy]
            ahead = reply.seq - min((reply.clock[each] for each in at_work), default=reply.seq)
            workers[slot].staleness_steps = max(ahead, 0)

    def start(self) -> bool:
        """Begin what can be begun; whether anything was."""
        moved = False
        for queue in self._operations.queues:
            for operation in queue.startable():
                moved |= self._start(operation)
        for held in self._held[:]:
            if self._can_compute(*held):
                self._held.remove(held)
                self._compute(*held)
                moved = True
        return moved

    def take_back(self, worker: Worker) -> None:
        """It has ended: what it was doing is for others, and what it was to read nobody wants."""
        for operation in worker.operations.values():
            operation.started = False
            operation.worker = None
            operation.done = operation.kind == "fetch"
        self._held = [held for held in self._held if held[0] is not worker]

    def is_ahead(self, step: int) -> bool:
        """Whether a lane's residuals are past `step`."""
        begun = [each.seq for worker in self._crew.workers.values() for each in worker.computing.values()]
        return self._residuals and any(seq >= step for seq in [*begun, *(seq for seq, _ in self._filled.values())])

    @property
    def at_rest(self) -> bool:
        return not self._crew.computing and self._operations.idle

    # -- what was done

    def computed(self, worker: Worker, ticket: int) -> m.Compute:
        """The gradient lies in its lane's buffers; which it is."""
        compute = worker.computing.pop(ticket)
        lane = self._lane_of(worker, compute)
        self._filled[lane] = compute.seq, compute.batch
        self._last[lane] = worker
        return compute

    def answer(self, worker: Worker, compute: m.Compute, *, empty: bool = False) -> None:
        """Tell the session that its gradient is there (empty: that there is none), for all shards at once."""
        pushed = Pushed(None if empty else self._lane_of(worker, compute), worker.slot)
        session = self._machines.sessions[worker.slot]
        for k in range(self._machines.job.shards):
            effects = session.computed(compute.term, compute.seq, compute.lane, k, 0, 1, pushed)
            self._machines.do(worker.address, effects)

    # -- operations

    def _start(self, operation: Operation) -> bool:
        if operation.kind == "inline":
            return _do_here(operation)
        if operation.kind == "fetch" and operation.worker is None:
            operation.done = True  # the answer that it belongs to reached nobody
            return True
        if operation.kind == "apply" and not self._operations.copies and self._crew.computing:
            return False  # a computation that a new term has overtaken still reads these pages
        if operation.kind == "keep" and operation.shard not in self._last:
            operation.done = True  # what is kept of this lane is all there is
            return True
        worker = self._last[operation.shard] if operation.kind == "keep" else self._executor(operation)
        if worker is None:
            return False
        self._ask(worker, operation)
        return True

    def _ask(self, worker: Worker, operation: Operation) -> None:
        operation.started = True
        if operation.kind == "apply":
            self._storage.before_apply(operation.shard)
        elif operation.kind == "keep":
            self._storage.before_keep(operation.shard)
        worker.operations[operation.number] = operation
        self._crew.say(worker, operation.kind, operation.number, operation.shard, operation.lanes)

    def _executor(self, operation: Operation) -> Worker | None:
        """Who does it: the one that is named, if it can; of the others each serves its share of the shards."""
        workers = self._crew.workers
        named = workers.get(-1 if operation.worker is None else operation.worker)
        if named is not None and (named.can_apply or operation.kind == "fetch"):
            return named
        live = [slot for slot, worker in sorted(workers.items()) if worker.can_apply]
        return workers[live[operation.shard % len(live)]] if live else None

    # -- gradients

    def _can_compute(self, worker: Worker, compute: m.Compute) -> bool:
        if not all(value.after is None or value.after.done for value in compute.values if isinstance(value, Reading)):
            return False
        if self.stopping or compute.seq >= self._machines.job.steps and not self._operations.copies:
            return False
        if self._residuals and not self._operations.idle:
            return False  # a checkpoint under way is still to take what this computation changes
        lane = self._lane_of(worker, compute)
        at_work = (self._lane_of(w, c) for w in self._crew.workers.values() for c in w.computing.values())
        return lane >= 0 and lane not in at_work

    def _compute(self, worker: Worker, compute: m.Compute) -> None:
        lane = self._lane_of(worker, compute)
        if not self._operations.copies and self._filled.get(lane) == (compute.seq, compute.batch):
            self.answer(worker, compute)  # computed before a new term began: the same bits
            return
        self._filled.pop(lane, None)
        self.newest_seq = max(self.newest_seq, compute.seq)
        self.newest_batch = max(self.newest_batch, compute.batch)
        self._tickets += 1
        worker.computing[self._tickets] = compute
        self._crew.say(worker, "compute", self._tickets, lane, compute.batch)

    def _lane_of(self, worker: Worker, compute: m.Compute) -> int:
        return worker.lane if self._operations.copies else compute.lane


def _do_here(operation: Operation) -> bool:
    """An operation that the steward does itself; False while it is not known what that is."""
    if operation.work is None:
        return False
    operation.started = True
    operation.work()
    operation.done = True
    return True
