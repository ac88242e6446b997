"""Group commit: one thread makes records durable while others go on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from gradbase.common.errors import StoreError
from gradbase.store.log._appender import Appender, DiskFullError
from gradbase.store.log._format import Record

GROUP_BYTES = 4 << 20
GROUP_US = 2000
BACKLOG_BYTES_MAX = 256 << 20


class LogWriter:
    """Appends without waiting. Owns `appender`; closes it.

    A group is written when somebody waits for one of its records (`sync`, `wait`), when `group_bytes` have come
    together, or when its oldest record is `group_us` old. Payloads are not copied: they must stay as they are until
    their record is durable. When `backlog_bytes_max` are waiting, `append` waits for the disk.

    on_durable(lsn): all records up to it are durable. on_failed(lsn, error): the log ends before `lsn`. What was
    appended from there on is dropped, and all that follows until that LSN is appended again. After a DiskFullError
    it can be; after any other error every append fails with it. Both are called on the log's thread, without a lock.
    """

    def __init__(
        self,
        appender: Appender,
        *,
        group_bytes: int = GROUP_BYTES,
        group_us: float = GROUP_US,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
        on_durable: Callable[[int], None] = lambda lsn: None,
        on_failed: Callable[[int, StoreError], None] = lambda lsn, error: None,
    ) -> None:
        self._appender = appender
        self._group_bytes, self._group_s, self._backlog = group_bytes, group_us / 1e6, backlog_bytes_max
        self._on_durable, self._on_failed = on_durable, on_failed
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Record, float]] = deque()
        self._waiting_bytes = 0
        self._expected = appender.next_lsn
        self._wanted = 0  # the highest LSN that somebody waits for
        self._truncate_to = 0
        self._error: StoreError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="gradbase-log", daemon=True)
        self._thread.start()

    @property
    def durable_lsn(self) -> int:
        """All records up to this one are durable."""
        return self._appender.next_lsn - 1

    @property
    def appender(self) -> Appender:
        return self._appender

    def append(self, record: Record) -> None:
        """Put a record behind the last one. Raises StoreError when the log is broken."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_bytes < self._backlog or self._is_broken())
            assert not self._closing, "the log is closed"
            if self._is_broken():
                assert self._error is not None
                raise self._error
            if self._error is not None and record.lsn > self._expected:
                return  # its caller is being told of an earlier record
            assert record.lsn == self._expected, f"record {record.lsn} follows {self._expected - 1}"
            self._error = None
            self._expected += 1
            self._waiting.append((record, time.monotonic() + self._group_s))
            self._waiting_bytes += record.nbytes
            if len(self._waiting) == 1 or self._waiting_bytes >= self._group_bytes:
                self._changed.notify_all()

    def sync(self, lsn: int) -> None:
        """Make records up to `lsn` durable now; `on_durable` tells when."""
        with self._changed:
            self._wanted = max(self._wanted, lsn)
            self._changed.notify_all()

    def wait(self, lsn: int, timeout_s: float | None = None) -> bool:
        """Return when `lsn` is durable, or False after `timeout_s`. Raises StoreError when the log failed before it."""
        with self._changed:
            self._wanted = max(self._wanted, lsn)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.durable_lsn >= lsn or self._error is not None, timeout_s)
            if self.durable_lsn < lsn and self._error is not None:
                raise self._error
            return self.durable_lsn >= lsn

    def truncate(self, lsn: int) -> None:
        """Let records up to `lsn` go, soon; they are in a durable checkpoint."""
        with self._changed:
            self._truncate_to = max(self._truncate_to, lsn)
            self._changed.notify_all()

    def close(self) -> None:
        """Make what was appended durable if that is possible, and close the log; a second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._appender.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_broken(self) -> bool:
        return self._error is not None and not isinstance(self._error, DiskFullError)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._await_work()
                group, truncate_to = self._take_group(), self._truncate_to
                self._truncate_to = 0
            if group:
                self._write(group)
            elif truncate_to:
                self._forget(truncate_to)
            else:
                return  # closing, and nothing is left

    def _await_work(self) -> None:
        while not (self._closing or self._truncate_to):
            if not self._waiting:
                self._changed.wait()
                continue
            first, due = self._waiting[0]
            if first.lsn <= self._wanted or self._waiting_bytes >= self._group_bytes:
                return
            left_s = due - time.monotonic()
            if left_s <= 0:
                return
            self._changed.wait(left_s)

    def _take_group(self) -> list[Record]:
        """Records for one write: about `group_bytes`, at least one if there is one."""
        group: list[Record] = []
        nbytes = 0
        while self._waiting and (not group or nbytes + self._waiting[0][0].nbytes <= self._group_bytes):
            record, _ = self._waiting.popleft()
            group.append(record)
            nbytes += record.nbytes
        return group

    def _write(self, group: list[Record]) -> None:
        try:
            self._appender.append(group)
        except StoreError as error:
            self._fail(error)
            return
        with self._changed:
            self._waiting_bytes -= sum(record.nbytes for record in group)
            self._changed.notify_all()
        self._on_durable(self.durable_lsn)
        self._appender.prepare()

    def _fail(self, error: StoreError) -> None:
        with self._changed:
            self._error = error
            self._expected = self._appender.next_lsn
            self._waiting.clear()
            self._waiting_bytes = 0
            self._changed.notify_all()
        self._on_failed(self._appender.next_lsn, error)

    def _forget(self, lsn: int) -> None:
        try:
            self._appender.truncate(lsn)
        except OSError:
            with self._changed:  # old segments are in nobody's way; the next checkpoint tries again
                self._truncate_to = 0
