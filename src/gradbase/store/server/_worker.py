"""A worker on another process or host: its session over a connection, while the caller computes."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch

from gradbase.common.errors import StoreError
from gradbase.store.codec import Compressor, decode
from gradbase.store.layout import Layout, page_view
from gradbase.store.machine import Job, Session, new_session
from gradbase.store.machine import messages as m
from gradbase.store.server._rows import Asked, Wanted, WorkerRows
from gradbase.store.wire import Address, Block, Connection, Limits, connect

if TYPE_CHECKING:
    from gradbase.store.layout import Memory

_TICK_S = 0.01

_Item: TypeAlias = m.Message | tuple[m.Compute, list[tuple[Block, ...]]]
_LEAVE: _Item = m.Leave(-1, -1)  # is not sent: the session says its own

Compute = Callable[[int, int, int], Mapping[int | str, torch.Tensor]]


class RemoteWorker:
    """One worker of a `StoreServer`'s job.

    values: memory for all parameters (uint8 tensor or buffer of `layout.slab_nbytes`); pulled pages are put there
    before each computation, so a model may consist of views into it (`layout.tensor_view`). compressor: codecs with
    error feedback; without, gradients go as they are.

    rows(batch), called from another thread: the ids that computing a batch looks up in the layout's tables of rows, by
    their names. These rows are pulled beside the pages, and put into their places in `values`; all others there mean
    nothing.
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
        rows: Wanted | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.layout, self.values = layout, values
        self.compressor = compressor or Compressor({})
        self.connection: Connection = connect(address, token, limits)
        self._me: m.Address = ("worker", worker)
        self._copies = job.retains or job.consistency != "bsp"
        self._session: Session = new_session(job, worker, secrets.randbits(62))
        self._rows = WorkerRows(layout, values, rows or _no_rows)
        self._session.selective = rows is not None
        self._asked: tuple[tuple[int, int], Asked] = (0, -1), ()  # for which term and seq, and what
        self._failure: Exception | None = None
        self._inbox: queue.Queue[_Item | None] = queue.Queue()
        self._work: queue.Queue[tuple[m.Compute, Asked] | None] = queue.Queue()

    def run(self, compute: Compute) -> None:
        """Work until the job is finished; StoreError when the server is lost before.

        compute(step or clock, lane, batch), in the caller's thread: the gradient of each page, flat, by number. A page
        that is left out has no gradient; of a buffer it is the new value. Of a table of rows it is the whole table's
        gradient, sparse or dense, by name.
        """
        for target in (self._receive, self._converse):
            threading.Thread(target=target, name="gradbase-session", daemon=True).start()
        try:
            while (given := self._work.get()) is not None:
                task, asked = given
                self._load(task, asked)
                gradients = compute(task.seq, task.lane, task.batch)
                self._inbox.put((task, self._payloads(gradients, asked)))
        finally:
            self.connection.close()
        if self._failure is not None:
            raise self._failure
        if not self._session.finished:
            raise StoreError(f"lost {self.connection.peer} before the job was finished", "join again with a new worker")

    def _load(self, task: m.Compute, asked: Asked) -> None:
        """Put what was pulled where the model reads it."""
        for shard, blocks in enumerate(task.values):
            assert isinstance(blocks, tuple)
            for block in blocks:
                if block.key < 0:
                    self._rows.put(block, asked, shard)
                    continue
                page = self.layout.pages[block.key]
                view = page_view(self.layout, self.values, page)
                decode((block.head, block.body), page.numel, view.dtype, out=view)

    def _payloads(self, gradients: Mapping[int | str, torch.Tensor], asked: Asked) -> list[tuple[Block, ...]]:
        """What goes to each shard, pages in the order in which the next step needs them."""
        payloads: list[list[Block]] = [[] for _ in range(self.layout.shard_count)]
        for name in (key for key in gradients if isinstance(key, str)):
            for shard, block in self._rows.pushed(name, gradients[name], asked):
                payloads[shard].append(block)
        for number in sorted(key for key in gradients if isinstance(key, int)):
            page, gradient = self.layout.pages[number], gradients[number]
            message = self.compressor.encode(number, gradient.clone() if self._copies else gradient)
            payloads[page.shard].append(Block(number, *message))
        return [tuple(payload) for payload in payloads]

    def leave(self) -> None:
        """Go before the job is finished, when what is being computed is done; others get the rest. From any thread:
        `run` then returns.
        """
        self._inbox.put(_LEAVE)

    # The threads of the session: one reads, one runs the machine and writes.

    def _receive(self) -> None:
        with contextlib.suppress(StoreError):
            while (letter := self.connection.receive()) is not None:
                self._inbox.put(letter.message)
        self._inbox.put(None)

    def _converse(self) -> None:
        try:
            self._talk()
        except Exception as error:  # of rows(batch), which the caller gave
            self._failure = error
        self._work.put(None)

    def _talk(self) -> None:
        with contextlib.suppress(_Lost):
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

    def _handle(self, item: _Item) -> None:
        if item is _LEAVE:
            self._carry(self._session.leave())
        elif isinstance(item[0], m.Compute):
            task, payloads = item[0], item[1]
            assert isinstance(payloads, list)
            for shard, payload in enumerate(payloads):
                self._carry(self._session.computed(task.term, task.seq, task.lane, shard, 0, 1, payload))
        else:
            self._carry(self._session.receive(item))

    def _carry(self, effects: Iterable[m.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, m.Send):
                self._send(effect.to, effect.message)
            elif isinstance(effect, m.Compute):
                self._work.put((effect, self._asked[1]))

    def _send(self, to: m.Address, message: m.Message) -> None:
        if isinstance(message, m.Pull) and message.selection is not None:
            message = message._replace(selection=self._selection(message, to[1]))
        try:
            self.connection.send(message, to, self._me)
        except StoreError as error:
            raise _Lost from error

    def _selection(self, pull: m.Pull, shard: int) -> tuple[Block, ...]:
        """The rows that the pull's batches need; a pull that is sent again asks for the same."""
        if self._asked[0] != (pull.term, pull.seq):
            assert isinstance(pull.selection, tuple)
            self._asked = (pull.term, pull.seq), self._rows.ask(pull.selection)
        return self._rows.selection(self._asked[1], shard)


class _Lost(Exception):
    """There is no way to the server any more."""


def _no_rows(batch: int) -> Mapping[str, torch.Tensor]:
    return {}
