"""The pager: moves frames to the page file and back while the step computes.

Each direction has its own threads; the system calls release the interpreter lock, so a transfer costs the
computing thread only memory bandwidth. A *page* is named by a key (the executor uses the storage's id). The
calls come from generated code, one thread per pager, a few microseconds each.
"""

from __future__ import annotations

import time
import weakref
from _thread import LockType, allocate_lock
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from gradbase.buffer._pagefile import PageFile
from gradbase.common.errors import PageError


@dataclass(frozen=True, slots=True)
class Traffic:
    """One direction, since the last reset. `busy_us` is time on the I/O threads (or the side stream).

    `stalls` counts waits that had to block, `stall_us` the time they took away from computing.
    """

    transfers: int = 0
    nbytes: int = 0
    busy_us: float = 0.0
    stalls: int = 0
    stall_us: float = 0.0


@dataclass(frozen=True, slots=True)
class PagerStatistics:
    page_out: Traffic
    page_in: Traffic


class PagerProtocol(Protocol):
    """What the executor calls. A frame is what `FrameSource.memory` gives on the pager's device.

    Rules, which `gradbase.buffer.testing.check_pager` verifies: the frame belongs to the transfer from start
    to wait; a read of a page whose write is not done comes after it; a failed transfer raises at its wait, and
    a read after a failed write of the same page fails too; waiting twice is a mistake (an assertion).
    """

    def start_out(self, key: int, frame: Any, file_offset: int) -> None: ...
    def start_in(self, key: int, frame: Any, file_offset: int) -> None: ...
    def wait_out(self, key: int) -> None: ...
    def wait_in(self, key: int) -> None: ...
    def wait(self, key: int) -> None: ...
    def drain(self) -> None: ...
    def statistics(self) -> PagerStatistics: ...
    def reset_statistics(self) -> None: ...
    def close(self) -> None: ...


class _Ticket:
    """One transfer. `lock` is held until it is done; only the thread that started it waits on it.

    `gate` is there for one read queued behind this write. It is a lock of its own, so that an interrupt in the
    computing thread, between taking `lock` and going on, can never leave an I/O thread hanging.
    """

    __slots__ = ("after", "done", "error", "file_offset", "frame", "gate", "lock")

    def __init__(self, frame: memoryview | None, file_offset: int) -> None:
        self.frame = frame
        self.file_offset = file_offset
        self.after: _Ticket | None = None
        self.gate: LockType | None = None
        self.error: BaseException | None = None
        self.done = False
        self.lock = allocate_lock()
        self.lock.acquire()

    def follow(self, write: _Ticket) -> None:
        """Come after `write`. The gate is hung before `done` is looked at again, so no wake-up is lost."""
        gate = allocate_lock()
        gate.acquire()
        write.gate = gate
        self.after = write

    def await_predecessor(self) -> None:
        write = self.after
        if write is None:
            return
        gate = write.gate
        if not write.done and gate is not None:
            gate.acquire()
        self.after = None
        if write.error is not None:
            raise write.error

    def finish(self) -> None:
        self.frame = None
        self.done = True
        if self.gate is not None:
            self.gate.release()
        self.lock.release()


class _Worker:
    """A thread with its queue and its counters. Holds no reference to the pager, so that can be collected."""

    def __init__(self, name: str, move: Callable[[int, memoryview], None]) -> None:
        self.queue: SimpleQueue[_Ticket | None] = SimpleQueue()
        self.transfers = 0
        self.nbytes = 0
        self.busy_us = 0.0
        self.cancelled = False
        self._move = move
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def barrier(self) -> _Ticket:
        """A ticket that is done when everything put before it is."""
        ticket = _Ticket(None, 0)
        self.queue.put(ticket)
        return ticket

    def cancel(self) -> None:
        """Fail what has not started; the thread ends after what has."""
        self.cancelled = True
        self.queue.put(None)

    def _run(self) -> None:
        while (ticket := self.queue.get()) is not None:
            self._serve(ticket)
            del ticket  # while the thread idles it must not keep the arena alive

    def _serve(self, ticket: _Ticket) -> None:
        try:
            self._transfer(ticket)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            ticket.error = error
        finally:
            ticket.finish()

    def _transfer(self, ticket: _Ticket) -> None:
        frame = ticket.frame
        if frame is None:
            return
        ticket.await_predecessor()
        if self.cancelled:
            raise PageError("the transfer was cancelled: the pager was closed before it began")
        began = time.perf_counter()
        self._move(ticket.file_offset, frame)
        self.busy_us += (time.perf_counter() - began) * 1e6
        self.nbytes += len(frame)
        self.transfers += 1


class _Direction:
    """The workers of one direction, what is outstanding there, and what waiting for it has cost."""

    def __init__(self, name: str, move: Callable[[int, memoryview], None], threads: int) -> None:
        self.workers = tuple(_Worker(f"gradbase-{name}-{index}", move) for index in range(threads))
        self.outstanding: dict[int, _Ticket] = {}
        self.stalls = 0
        self.stall_us = 0.0
        self._turn = 0

    def put(self, key: int, ticket: _Ticket) -> None:
        """Queue first, note second: if an interrupt falls between, `drain` still waits for the transfer."""
        assert key not in self.outstanding, "a page has one transfer per direction at a time"
        workers = self.workers
        self._turn = turn = (self._turn + 1) % len(workers)
        workers[turn].queue.put(ticket)
        self.outstanding[key] = ticket

    def wait(self, key: int) -> None:
        ticket = self.outstanding.get(key)
        assert ticket is not None, "the page has no such transfer to wait for"
        if not ticket.done:
            self._stall(ticket)
        del self.outstanding[key]
        if ticket.error is not None:
            raise ticket.error

    def _stall(self, ticket: _Ticket) -> None:
        began = time.perf_counter()
        ticket.lock.acquire()
        self.stall_us += (time.perf_counter() - began) * 1e6
        self.stalls += 1

    def idle(self) -> bool:
        return all(ticket.done for ticket in self.outstanding.values())

    def traffic(self) -> Traffic:
        return Traffic(
            transfers=sum(worker.transfers for worker in self.workers),
            nbytes=sum(worker.nbytes for worker in self.workers),
            busy_us=sum(worker.busy_us for worker in self.workers),
            stalls=self.stalls,
            stall_us=self.stall_us,
        )

    def reset(self) -> None:
        self.stalls, self.stall_us = 0, 0.0
        for worker in self.workers:
            worker.transfers, worker.nbytes, worker.busy_us = 0, 0, 0.0


class Pager:
    """Pages between an `Arena` and a `PageFile`, first in, first out in each direction.

    With `threads` above one per direction the transfers are dealt out in turn, so only transfers on the same
    thread keep their order (and a read still follows the write of its page).
    """

    def __init__(self, pagefile: PageFile, threads: int = 1) -> None:
        assert threads >= 1
        self._out = _Direction("page-out", pagefile.write, threads)
        self._in = _Direction("page-in", pagefile.read, threads)
        self._workers = self._out.workers + self._in.workers
        self._closed = False
        self._finalizer = weakref.finalize(self, _cancel, self._workers)

    def start_out(self, key: int, frame: memoryview, file_offset: int) -> None:
        """Begin writing a frame to its place. The frame must not change until `wait_out`."""
        self._refuse_closed()
        reading = self._in.outstanding.get(key)
        assert reading is None or reading.done, "a page is read completely before it is written"
        self._out.put(key, _Ticket(frame, file_offset))

    def start_in(self, key: int, frame: memoryview, file_offset: int) -> None:
        """Begin filling a frame from its place. Its contents are undefined until `wait_in`."""
        self._refuse_closed()
        ticket = _Ticket(frame, file_offset)
        writing = self._out.outstanding.get(key)
        if writing is not None:
            ticket.follow(writing)
        self._in.put(key, ticket)

    def wait_out(self, key: int) -> None:
        """Block until the page is written. Raises PageError if writing failed."""
        self._out.wait(key)

    def wait_in(self, key: int) -> None:
        """Block until the page is read. Raises PageError if reading, or the write before it, failed."""
        self._in.wait(key)

    def wait(self, key: int) -> None:
        """Block until nothing is outstanding for the page; at least one transfer must be."""
        assert key in self._out.outstanding or key in self._in.outstanding, "the page has no transfer to wait for"
        if key in self._out.outstanding:
            self._out.wait(key)
        if key in self._in.outstanding:
            self._in.wait(key)

    def idle(self) -> bool:
        """Whether everything that was started is done (it still has to be waited for)."""
        return self._out.idle() and self._in.idle()

    def drain(self) -> None:
        """Block until no I/O thread touches any frame, and forget all transfers; the pager can be used again.

        For the way out of a step that was interrupted or failed. Raises the first error of a transfer nobody
        waited for, once everything is quiet. If drain itself is interrupted, call it again.
        """
        for ticket in [worker.barrier() for worker in self._workers if worker.thread.is_alive()]:
            ticket.lock.acquire()
        left = [*self._out.outstanding.values(), *self._in.outstanding.values()]
        self._out.outstanding.clear()
        self._in.outstanding.clear()
        for ticket in left:
            if ticket.error is not None:
                raise ticket.error

    def statistics(self) -> PagerStatistics:
        return PagerStatistics(page_out=self._out.traffic(), page_in=self._in.traffic())

    def reset_statistics(self) -> None:
        """Set the counters to zero. Call it while nothing is outstanding."""
        self._out.reset()
        self._in.reset()

    def close(self) -> None:
        """Cancel what has not started, let what runs finish, end the threads. Calling it twice is fine.

        The page file stays open: it belongs to whoever made it.
        """
        self._closed = True
        self._finalizer()
        for worker in self._workers:
            worker.thread.join()

    def __enter__(self) -> Pager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PageError("the pager is closed", "compile the step again")


def _cancel(workers: tuple[_Worker, ...]) -> None:
    for worker in workers:
        worker.cancel()
