"""One connection: whole messages in, whole messages out, bodies without copies."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import StoreError
from gradbase.store.machine.messages import COORDINATOR
from gradbase.store.machine.messages import Address as Machine
from gradbase.store.wire._address import Address, dial
from gradbase.store.wire._frames import FRAME, Buffer, Letter, Limits, pack, read_fields, read_frame
from gradbase.store.wire._handshake import checked_token, introduce

Place = Callable[[type, int, Buffer, int], memoryview | None]

_BUFFERS_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)
_WAKE_S = 0.5  # a blocked call returns this often to look at its deadline
_RATE_NBYTES_MIN = 1 << 20  # smaller messages fit into the system's buffers and say nothing about the link
_ALIGNMENT_BYTES = 64
_WATCH = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000))


class Connection:
    """A trusted peer. `send` from any thread; `receive` from one. Counts its bytes.

    Ends itself, with a StoreError, when the peer breaks the rules of README.md, goes away within a message or is too
    slow; afterwards `send` fails and `receive` gives None.
    """

    def __init__(self, sock: socket.socket, limits: Limits, peer: str) -> None:
        self.peer = peer
        self.sent_nbytes = 0
        self.received_nbytes = 0
        self._socket, self._limits = sock, limits
        self._sending = threading.Lock()
        self._closed = False
        self._memory = _Pool()
        self._rate_nbytes, self._rate_s = 0, 0.0
        _prepare(sock)

    @property
    def link_bytes_per_s(self) -> float | None:
        """What the link carried while it was busy with large messages; None before the first."""
        return self._rate_nbytes / self._rate_s if self._rate_s else None

    def send(self, message: Any, to: Machine = COORDINATOR, sender: Machine = COORDINATOR) -> None:
        """Send a message; returns when the system has taken all of it. Bodies must not change before that."""
        buffers = pack(Letter(message, to, sender), self._limits)
        nbytes = sum(map(len, buffers))
        with self._sending:
            begin = time.monotonic()
            self._write(buffers, begin + self._limits.frame_s)
            self.sent_nbytes += nbytes
            if nbytes >= _RATE_NBYTES_MIN:
                self._rate_nbytes += nbytes
                self._rate_s += time.monotonic() - begin

    def receive(self, place: Place | None = None) -> Letter | None:
        """The next message, after any wait; None once the connection was closed between two messages.

        place(message type, key, head, bytes): memory of exactly that size for the body of a block, or None to have it
        in memory of the connection's own. The memory must stay valid until `receive` returns.
        """
        header = bytearray(FRAME.size)
        if not self._read([memoryview(header)], None):
            return None
        deadline = time.monotonic() + self._limits.frame_s
        try:
            frame = read_frame(header, self._limits)
            fields = memoryview(bytearray(frame.fields_nbytes))
            self._read([fields], deadline)
            plan = read_fields(frame.kind, fields, frame.bodies_nbytes)
            bodies = self._homes(plan.kind, plan.blocks, place)
            self._read(bodies, deadline)
        except BaseException:
            self.close()
            raise
        self.received_nbytes += FRAME.size + frame.fields_nbytes + frame.bodies_nbytes
        return Letter(plan.finish(bodies), frame.to, frame.sender)

    def close(self) -> None:
        """End the connection; a call that waits in another thread returns. Twice is fine."""
        self._closed = True
        with contextlib.suppress(OSError):  # the peer may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _homes(self, kind: type, blocks: Sequence[tuple[int, Buffer, int]], place: Place | None) -> list[memoryview]:
        """Where each body goes."""
        placed = [place(kind, key, head, nbytes) if place else None for key, head, nbytes in blocks]
        own = [0 if view else _aligned(nbytes) for view, (_, _, nbytes) in zip(placed, blocks, strict=True)]
        memory, at = self._memory.take(sum(own)).data, 0
        homes = []
        for view, room, (_, _, nbytes) in zip(placed, own, blocks, strict=True):
            homes.append(memory[at : at + nbytes] if view is None else view.cast("B"))
            assert len(homes[-1]) == nbytes, "a body gets memory of its own size"
            at += room
        return homes

    def _read(self, views: Sequence[memoryview], deadline: float | None) -> bool:
        """Fill all views. Without a deadline the first byte may take any time, and False says that none will come."""
        left = [view for view in views if len(view)]
        begun = False
        while left:
            count = self._receive_into(left)
            if count == 0:
                if not begun and deadline is None:
                    return False
                raise self._gone("closed the connection within a message")
            if count > 0 and not begun:
                begun = True
                deadline = deadline or time.monotonic() + self._limits.frame_s
            left = _after(left, max(count, 0))
            if left and deadline and time.monotonic() > deadline:
                raise self._gone(f"did not finish a message within {self._limits.frame_s:g} s")
        return True

    def _receive_into(self, views: Sequence[memoryview]) -> int:
        """Bytes received, 0 at the end, -1 if none came for a while."""
        try:
            return self._socket.recvmsg_into(views[:_BUFFERS_MAX], 0, socket.MSG_WAITALL)[0]
        except BlockingIOError:
            return -1
        except OSError as error:
            if self._closed:
                return 0
            raise self._gone(error.strerror or str(error)) from error

    def _write(self, buffers: Sequence[Buffer], deadline: float) -> None:
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            try:
                count = self._socket.sendmsg(left[:_BUFFERS_MAX])
            except BlockingIOError:
                count = 0
            except OSError as error:
                raise self._gone(error.strerror or str(error)) from error
            left = _after(left, count)
            if left and time.monotonic() > deadline:
                raise self._gone(f"took no whole message within {self._limits.frame_s:g} s")

    def _gone(self, why: str) -> StoreError:
        self.close()
        return StoreError(f"lost {self.peer}: {why}", "connect again")


def connect(address: Address, token: str, limits: Limits | None = None) -> Connection:
    """Connect to a listening store and prove the token; StoreError if it does not answer, refuses, or is another."""
    limits, secret = limits or Limits(), checked_token(token)
    sock = dial(address, limits.handshake_s)
    try:
        introduce(TimedStream(sock, limits.handshake_s), secret)
    except BaseException:
        sock.close()
        raise
    return Connection(sock, limits, f"the store at {address}")


class TimedStream:
    """Bytes of a socket in the handshake, all of it within `limit_s`."""

    def __init__(self, sock: socket.socket, limit_s: float) -> None:
        self._socket, self._limit_s = sock, limit_s
        self._deadline = time.monotonic() + limit_s

    def read(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            data += self._some(nbytes - len(data))
        return data

    def write(self, data: bytes) -> None:
        self._timed(lambda: self._socket.sendall(data))

    def _timed(self, call: Callable[[], Any]) -> Any:
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            return call()
        except OSError as error:
            why = f"not done within {self._limit_s:g} s" if isinstance(error, TimeoutError) else str(error)
            raise StoreError(f"the handshake failed: {why}", "is a store of gradbase at that address?") from error

    def _some(self, nbytes: int) -> bytes:
        data: bytes = self._timed(lambda: self._socket.recv(nbytes))
        if not data:
            raise StoreError("the handshake failed: the peer closed the connection", "is a store of gradbase there?")
        return data


class _Pool:
    """Memory for bodies, reused once the last view into it is gone: fresh memory costs more than the copy into it."""

    _KEPT = 3

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Contents mean nothing."""
        with self._lock:
            fitting = [memory for memory in self._free if nbytes <= len(memory) <= max(2 * nbytes, 1 << 16)]
            memory = min(fitting, key=len) if fitting else None
            self._free = [other for other in self._free if other is not memory]
        if memory is None:
            memory = np.empty(max(nbytes, 1), np.uint8)
        # The array that is handed out refers to the memory through a view, so that its end is not the memory's end.
        lent: NDArray[np.uint8] = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(lent, self._give_back, memory).atexit = False
        return lent

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free = [*self._free, memory][-self._KEPT :]


def _prepare(sock: socket.socket) -> None:
    """Blocking calls, so that one fills a whole page, which the system ends after a while all the same."""
    sock.settimeout(None)
    wake = struct.pack("ll", 0, int(_WAKE_S * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wake)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wake)
    keep_watch(sock)


def keep_watch(sock: socket.socket) -> None:
    """Have the system notice within some fifteen seconds that the other host is gone, and send small messages at once.

    On systems that cannot be told how long, what they take by themselves, which may be hours.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _WATCH:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _after(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of some views after their first `count` bytes."""
    for i, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[i + 1 :]]
        count -= len(view)
    return []


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
