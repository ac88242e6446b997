"""A worker on another process or host: its session over a connection, while the caller computes."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from gradbase.common.errors import StoreError
from gradbase.store.codec import Compressor, decode
from gradbase.store.layout import Layout, page_view
from gradbase.store.machine import Job, Session, new_session
from gradbase.store.machine import messages as m
from gradbase.store.wire import Address, Block, Connection, Limits, connect

if TYPE_CHECKING:
    from gradbase.store.layout import Memory

_TICK_S = 0.01

Compute = Callable[[int, int, int], Mapping[int, torch.Tensor]]


class RemoteWorker:
    """One worker of a `StoreServer`'s job.

    values: memory for all parameters (uint8 tensor or buffer of `layout.slab_nbytes`); pulled pages are put there
    before each computation, so a model may consist of views into it (`layout.tensor_view`). compressor: codecs with
    error feedback; without, gradients go as they are.
    """

    def __init__(
        self,
        job: Job,
        layout: Layout,
        worker: int,
        address: Address,
        token: str,
        values: Memory,
        *,
        compressor: Compressor | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.layout, self.values = layout, values
        self.compressor = compressor or Compressor({})
        self.connection: Connection = connect(address, token, limits)
        self._me: m.Address = ("worker", worker)
        self._copies = job.retains or job.consistency != "bsp"
        self._session: Session = new_session(job, worker, secrets.randbits(62))
        self._inbox: queue.Queue[m.Message | tuple[m.Compute, list[tuple[Block, ...]]] | None] = queue.Queue()
        self._work: queue.Queue[m.Compute | None] = queue.Queue()

    def run(self, compute: Compute) -> None:
        """Work until the job is finished; StoreError when the server is lost before.

        compute(step or clock, lane, batch), in the caller's thread: the gradient of each page, flat, by number. A page
        that is left out has no gradient; of a buffer it is the new value.
        """
        for target in (self._receive, self._converse):
            threading.Thread(target=target, name="gradbase-session", daemon=True).start()
        try:
            while (task := self._work.get()) is not None:
                self._load(task)
                gradients = compute(task.seq, task.lane, task.batch)
                self._inbox.put((task, self._payloads(gradients)))
        finally:
            self.connection.close()
        if not self._session.finished:
            raise StoreError(f"lost {self.connection.peer} before the job was finished", "join again with a new worker")

    def _load(self, task: m.Compute) -> None:
        """Put what was pulled where the model reads it."""
        for blocks in task.values:
            assert isinstance(blocks, tuple)
            for key, head, body in blocks:
                page = self.layout.pages[key]
                view = page_view(self.layout, self.values, page)
                decode((head, body), page.numel, view.dtype, out=view)

    def _payloads(self, gradients: Mapping[int, torch.Tensor]) -> list[tuple[Block, ...]]:
        """What goes to each shard, pages in the order in which the next step needs them."""
        payloads: list[list[Block]] = [[] for _ in range(self.layout.shard_count)]
        for number in sorted(gradients):
            page, gradient = self.layout.pages[number], gradients[number]
            message = self.compressor.encode(number, gradient.clone() if self._copies else gradient)
            payloads[page.shard].append(Block(number, *message))
        return [tuple(payload) for payload in payloads]

    # The threads of the session: one reads, one runs the machine and writes.

    def _receive(self) -> None:
        with contextlib.suppress(StoreError):
            while (letter := self.connection.receive()) is not None:
                self._inbox.put(letter.message)
        self._inbox.put(None)

    def _converse(self) -> None:
        with contextlib.suppress(StoreError):
            self._carry(self._session.start())
            ticked = 0.0
            while not self._session.finished:
                with contextlib.suppress(queue.Empty):
                    item = self._inbox.get(timeout=_TICK_S)
                    if item is None:
                        break
                    self._handle(item)
                if time.monotonic() - ticked >= _TICK_S:
                    ticked = time.monotonic()
                    self._carry(self._session.tick(int(ticked * 1e6)))
        self._work.put(None)

    def _handle(self, item: m.Message | tuple[m.Compute, list[tuple[Block, ...]]]) -> None:
        if isinstance(item[0], m.Compute):
            task, payloads = item[0], item[1]
            assert isinstance(payloads, list)
            for shard, payload in enumerate(payloads):
                self._carry(self._session.computed(task.term, task.seq, task.lane, shard, 0, 1, payload))
        else:
            self._carry(self._session.receive(item))

    def _carry(self, effects: Iterable[m.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, m.Send):
                self.connection.send(effect.message, effect.to, self._me)
            elif isinstance(effect, m.Compute):
                self._work.put(effect)
