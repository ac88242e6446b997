"""For tests of pagers, and of whoever uses one.

`check_pager` is the conformance suite: every implementation of `PagerProtocol` passes it. `MemoryPager` is a
pager without threads or files that moves bytes at the earliest or at the latest moment the rules allow, and
poisons what nobody may look at, so that a missing or misplaced wait shows as wrong numbers in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from gradbase.buffer._arena import FrameSource
from gradbase.buffer._pager import PagerProtocol, PagerStatistics, Traffic
from gradbase.common.errors import PageError

__all__ = ["MemoryPager", "PagerBench", "check_pager", "frames_of", "pager_checks"]

POISON = 0xDB
PAGE_BYTES = 4096


@dataclass
class PagerBench:
    """A pager with somewhere to page from: what `check_pager` runs on.

    `frames(nbytes)` gives a fresh frame, `put(frame, data)` and `get(frame)` set and read its bytes once the
    device is idle. The file behind the pager holds at least `file_bytes` bytes.
    """

    pager: PagerProtocol
    frames: Callable[[int], Any]
    file_bytes: int = 16 << 20
    put: Callable[[Any, bytes], None] = field(default=lambda frame, data: frame.__setitem__(slice(None), data))
    get: Callable[[Any], bytes] = field(default=bytes)


OpenBench = Callable[[], AbstractContextManager[PagerBench]]


def check_pager(open_bench: OpenBench) -> None:
    """Run the whole conformance suite; each check on a bench of its own. Raises AssertionError."""
    for check in pager_checks():
        with open_bench() as bench:
            check(bench)


def pager_checks() -> tuple[Callable[[PagerBench], None], ...]:
    """The checks one by one, for a test runner that names them."""
    return (
        check_round_trip,
        check_odd_sizes,
        check_many_pages,
        check_read_after_queued_write,
        check_frame_is_free_after_wait,
        check_overwrite,
        check_wait_covers_both,
        check_second_wait_is_a_mistake,
        check_statistics,
        check_drain,
        check_close,
    )


def check_round_trip(bench: PagerBench) -> None:
    data = _pattern(1, 3 * PAGE_BYTES)
    frame = _filled(bench, data)
    bench.pager.start_out(1, frame, 0)
    bench.pager.wait_out(1)
    bench.put(frame, bytes(len(data)))
    bench.pager.start_in(1, frame, 0)
    bench.pager.wait_in(1)
    assert bench.get(frame) == data


def check_odd_sizes(bench: PagerBench) -> None:
    """A page need not be a multiple of the alignment, and its neighbours in memory stay as they are."""
    for key, nbytes in enumerate((1, 511, PAGE_BYTES - 1, PAGE_BYTES + 1, 5 * PAGE_BYTES + 77)):
        data = _pattern(key, nbytes)
        whole = _filled(bench, data + b"\x5a" * 64)
        bench.pager.start_out(key, whole[:nbytes], key * 16 * PAGE_BYTES)
        bench.pager.wait_out(key)
        bench.put(whole, bytes(nbytes) + b"\x5a" * 64)
        bench.pager.start_in(key, whole[:nbytes], key * 16 * PAGE_BYTES)
        bench.pager.wait_in(key)
        assert bench.get(whole) == data + b"\x5a" * 64, f"page of {nbytes} bytes"


def check_many_pages(bench: PagerBench) -> None:
    """Many transfers at once in both directions, waited for in another order than they were started."""
    data = {key: _pattern(key, (1 + key % 5) * PAGE_BYTES) for key in range(40)}
    place = {key: key * 8 * PAGE_BYTES for key in data}
    frames = {key: _filled(bench, data[key]) for key in data}
    for key in data:
        bench.pager.start_out(key, frames[key], place[key])
    for key in reversed(data):
        bench.pager.wait_out(key)
    fresh = {key: bench.frames(len(data[key])) for key in data}
    for key in data:
        bench.pager.start_in(key, fresh[key], place[key])
    for key in reversed(data):
        bench.pager.wait_in(key)
        assert bench.get(fresh[key]) == data[key]


def check_read_after_queued_write(bench: PagerBench) -> None:
    """A read started while the page's write is queued behind others gives what was written."""
    data = _pattern(7, 1 << 20)
    source, target = _filled(bench, data), bench.frames(len(data))
    others = {key: _filled(bench, _pattern(key, 1 << 20)) for key in range(1, 5)}
    for key, frame in others.items():
        bench.pager.start_out(key, frame, key << 20)
    bench.pager.start_out(7, source, 7 << 20)
    bench.pager.start_in(7, target, 7 << 20)
    bench.pager.wait_in(7)
    bench.pager.wait_out(7)
    for key in others:
        bench.pager.wait_out(key)
    assert bench.get(target) == data


def check_frame_is_free_after_wait(bench: PagerBench) -> None:
    """What happens to a frame after its write was awaited is not what gets read back."""
    data = _pattern(3, 4 * PAGE_BYTES)
    frame = _filled(bench, data)
    bench.pager.start_out(3, frame, 0)
    bench.pager.wait_out(3)
    bench.put(frame, b"\xff" * len(data))
    target = bench.frames(len(data))
    bench.pager.start_in(3, target, 0)
    bench.pager.wait_in(3)
    assert bench.get(target) == data


def check_overwrite(bench: PagerBench) -> None:
    """A page may be written again and again: the last write counts."""
    frame = bench.frames(PAGE_BYTES)
    for round_ in range(5):
        bench.put(frame, _pattern(round_, PAGE_BYTES))
        bench.pager.start_out(2, frame, PAGE_BYTES)
        bench.pager.wait_out(2)
        bench.put(frame, bytes(PAGE_BYTES))
        bench.pager.start_in(2, frame, PAGE_BYTES)
        bench.pager.wait_in(2)
        assert bench.get(frame) == _pattern(round_, PAGE_BYTES)


def check_wait_covers_both(bench: PagerBench) -> None:
    """`wait` leaves nothing outstanding for the page, whichever way it was going."""
    data = _pattern(4, PAGE_BYTES)
    target = bench.frames(PAGE_BYTES)
    bench.pager.start_out(4, _filled(bench, data), 0)
    bench.pager.start_in(4, target, 0)
    bench.pager.wait(4)
    assert bench.get(target) == data
    _assert_mistake(lambda: bench.pager.wait(4))


def check_second_wait_is_a_mistake(bench: PagerBench) -> None:
    bench.pager.start_out(5, _filled(bench, _pattern(5, PAGE_BYTES)), 0)
    bench.pager.wait_out(5)
    _assert_mistake(lambda: bench.pager.wait_out(5))
    _assert_mistake(lambda: bench.pager.wait_in(5))


def check_statistics(bench: PagerBench) -> None:
    bench.pager.reset_statistics()
    check_round_trip(bench)
    seen = bench.pager.statistics()
    for traffic in (seen.page_out, seen.page_in):
        assert (traffic.transfers, traffic.nbytes) == (1, 3 * PAGE_BYTES)
        assert traffic.busy_us >= 0 and traffic.stall_us >= 0 and traffic.stalls <= 1
    bench.pager.reset_statistics()
    assert bench.pager.statistics() == PagerStatistics(Traffic(), Traffic())


def check_drain(bench: PagerBench) -> None:
    """After drain no transfer is outstanding, everything started is done, and the pager works on."""
    data = {key: _pattern(key, 1 << 20) for key in range(6)}
    for key, content in data.items():
        bench.pager.start_out(key, _filled(bench, content), key << 20)
    bench.pager.drain()
    _assert_mistake(lambda: bench.pager.wait_out(0))
    for key, content in data.items():
        target = bench.frames(len(content))
        bench.pager.start_in(key, target, key << 20)
        bench.pager.wait_in(key)
        assert bench.get(target) == content
    bench.pager.drain()


def check_close(bench: PagerBench) -> None:
    """Closing with transfers queued returns, twice is fine, and a closed pager refuses work."""
    frames = [_filled(bench, _pattern(key, 1 << 20)) for key in range(8)]
    for key, frame in enumerate(frames):
        bench.pager.start_out(key, frame, key << 20)
    bench.pager.close()
    bench.pager.close()
    try:
        bench.pager.start_out(99, frames[0], 0)
    except PageError:
        return
    raise AssertionError("a closed pager took work")


class MemoryPager:
    """A pager over a bytearray, without threads.

    `when` says when bytes move: "start" is the earliest moment the rules allow, "wait" the latest. With
    "wait", a frame being read into is poisoned from start to wait; with either, a frame written out is
    poisoned after its wait (`poison_written`), because the plan has given it up.
    """

    def __init__(
        self, nbytes: int, *, when: Literal["start", "wait"] = "wait", poison_written: bool = False
    ) -> None:
        self._file = bytearray(nbytes)
        self._when = when
        self._poison_written = poison_written
        self._out: dict[int, tuple[memoryview, int]] = {}
        self._in: dict[int, tuple[memoryview, int]] = {}
        self._written = self._read = Traffic()
        self._closed = False

    def start_out(self, key: int, frame: memoryview, file_offset: int) -> None:
        self._refuse_closed()
        assert key not in self._out and key not in self._in
        self._out[key] = (frame, file_offset)
        if self._when == "start":
            self._write(frame, file_offset)

    def start_in(self, key: int, frame: memoryview, file_offset: int) -> None:
        self._refuse_closed()
        assert key not in self._in
        self._in[key] = (frame, file_offset)
        if self._when == "start":
            self._fill(frame, file_offset)
        else:
            _poison(frame)

    def wait_out(self, key: int) -> None:
        assert key in self._out, "the page has no write to wait for"
        frame, file_offset = self._out.pop(key)
        if self._when == "wait":
            self._write(frame, file_offset)
        if self._poison_written:
            _poison(frame)

    def wait_in(self, key: int) -> None:
        assert key in self._in, "the page has no read to wait for"
        frame, file_offset = self._in.pop(key)
        if self._when == "start":
            return
        if key in self._out:  # the write this read comes after; its frame still holds the data
            self._write(*self._out[key])
        self._fill(frame, file_offset)

    def wait(self, key: int) -> None:
        assert key in self._out or key in self._in, "the page has no transfer to wait for"
        if key in self._out:
            self.wait_out(key)
        if key in self._in:
            self.wait_in(key)

    def drain(self) -> None:
        for key in [*self._out]:
            self.wait_out(key)
        for key in [*self._in]:
            self.wait_in(key)

    def statistics(self) -> PagerStatistics:
        return PagerStatistics(page_out=self._written, page_in=self._read)

    def reset_statistics(self) -> None:
        self._written = self._read = Traffic()

    def close(self) -> None:
        self._closed = True
        self._out.clear()
        self._in.clear()

    def _write(self, frame: memoryview, file_offset: int) -> None:
        assert file_offset + len(frame) <= len(self._file), "the page lies outside its file"
        self._file[file_offset : file_offset + len(frame)] = frame
        self._written = Traffic(self._written.transfers + 1, self._written.nbytes + len(frame))

    def _fill(self, frame: memoryview, file_offset: int) -> None:
        assert file_offset + len(frame) <= len(self._file), "the page lies outside its file"
        frame[:] = self._file[file_offset : file_offset + len(frame)]
        self._read = Traffic(self._read.transfers + 1, self._read.nbytes + len(frame))

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PageError("the pager is closed", "compile the step again")


def _poison(frame: memoryview) -> None:
    frame[:] = bytes([POISON]) * len(frame)


def _pattern(seed: int, nbytes: int) -> bytes:
    """Bytes that differ between seeds and repeat with no power of two, so shifted blocks are noticed."""
    period = bytes((seed * 37 + position * position) % 251 for position in range(251))
    return (period * (nbytes // 251 + 1))[:nbytes]


def _filled(bench: PagerBench, data: bytes) -> Any:
    frame = bench.frames(len(data))
    bench.put(frame, data)
    return frame


def _assert_mistake(call: Callable[[], None]) -> None:
    try:
        call()
    except AssertionError:
        return
    raise AssertionError("waiting for a page that has no transfer went through")


def frames_of(arena: FrameSource) -> Callable[[int], Any]:
    """Frames one after the other from an arena, aligned as a planner aligns them."""
    position = 0

    def take(nbytes: int) -> Any:
        nonlocal position
        start, position = position, position + -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        return arena.memory(start, nbytes)

    return take
