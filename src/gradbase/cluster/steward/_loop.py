"""A thread that sleeps until a descriptor can be read, or until another thread has work for it."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Loop:
    """Handlers of descriptors, and calls from other threads. All but `call` belongs to the thread that loops."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._waking, self._closed = threading.RLock(), False  # a signal handler may interrupt `call` and call again
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self.listen(self._wake_read, self._on_wake)

    def listen(self, source: Any, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `source`, a descriptor, can be read."""
        self._selector.register(source, selectors.EVENT_READ, handler)

    def forget(self, source: Any) -> None:
        self._selector.unregister(source)

    def call(self, work: Callable[[], None]) -> None:
        """Have `work` done by the thread that loops, unless that is over by then. From any thread."""
        self._calls.append(work)
        with self._waking, contextlib.suppress(BlockingIOError):  # full: it is being woken anyhow
            if not self._closed:
                os.write(self._wake_write, b"\0")

    @property
    def called(self) -> bool:
        """Whether there is work from `call`."""
        return bool(self._calls)

    def do_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def wait(self, timeout_s: float) -> None:
        """Sleep until something can be read, then have it handled."""
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def close(self) -> None:
        self._selector.close()
        with self._waking:
            self._closed = True
            for fd in (self._wake_read, self._wake_write):
                os.close(fd)

    def _on_wake(self) -> None:
        os.read(self._wake_read, 4096)
