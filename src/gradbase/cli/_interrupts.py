"""Ctrl-C that does not tear a step apart."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """While it is open, an interrupt inside `deferred()` waits for that block's end; a second one does not.

    Outside `deferred()` an interrupt raises KeyboardInterrupt at once, as always. `on_first` is called when one is
    put off. On other threads than the main one, where Python handles no signals, it changes nothing, and a process
    that ignores interrupts, as a shell's background jobs do, goes on ignoring them.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._deferring = False
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Put an interrupt off until the end of the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._asked:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring or self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._on_first()
