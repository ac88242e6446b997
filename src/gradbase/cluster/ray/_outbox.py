"""A thread that sends pages while others are still being made, those that are needed first before the others."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Sequence

_PAGES = 8  # in one message: of small pages a header each would cost more than they do


class Outbox:
    """`send(numbers, last)` is called in the thread, `last` once for every `flush`. Pages are numbered in the order in
    which the next step needs them, so of those that wait the lowest go first.
    """

    def __init__(self, send: Callable[[Sequence[int], bool], None]) -> None:
        self._send = send
        self._waiting: list[int] = []
        self._flushing = self._closed = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="gradbase-outbox", daemon=True).start()

    def put(self, numbers: Iterable[int]) -> None:
        """These pages may be sent, and will not change until `flush` has returned."""
        with self._changed:
            for number in numbers:
                heapq.heappush(self._waiting, number)
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when all is sent. Raises what sending raised."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._flushing or self._failure is not None)
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """End the thread; what waits is not sent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._flushing or self._closed)
                if self._closed:
                    return
                numbers = [heapq.heappop(self._waiting) for _ in range(min(_PAGES, len(self._waiting)))]
                last = self._flushing and not self._waiting
            try:
                self._send(numbers, last)
            except Exception as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            if last:
                with self._changed:
                    self._flushing = False
                    self._changed.notify_all()
