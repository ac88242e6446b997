"""The pager of an accelerator: frames in device memory, pages in pinned host memory, copies on side streams.

The protocol is the disk pager's, but time passes on the device: `start_*` queues a copy on a side stream
behind what the current stream has been given so far, and `wait_*` makes the current stream, not the calling
thread, wait for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradbase.buffer._arena import Arena
from gradbase.buffer._pager import PagerStatistics, Traffic
from gradbase.common.errors import PageError
from gradbase.common.units import format_bytes

if TYPE_CHECKING:
    import torch


class CudaPager:
    """Pages between a `DeviceArena` and `nbytes` bytes of pinned host memory. Frames are uint8 tensors.

    The host memory is registered as it is: torch's own pinned allocator rounds up to powers of two, which at
    these sizes can double what the host needs. Raises PageError when it cannot be pinned.

    Errors of the device come back as torch raises them, at the next call that synchronizes.
    """

    def __init__(self, nbytes: int, device: str | torch.device = "cuda") -> None:
        import torch

        self._device = torch.device(device)
        self._arena = Arena(nbytes)
        self._host = torch.frombuffer(self._arena.memory(0, nbytes), dtype=torch.uint8)
        _pin(self._arena)
        self._out = _Lane(self._device)
        self._in = _Lane(self._device)
        self._closed = False

    def start_out(self, key: int, frame: torch.Tensor, file_offset: int) -> None:
        """Queue a copy of the frame to its place. The frame must not be written before `wait_out`."""
        self._refuse_closed()
        self._out.copy(key, self._place(file_offset, frame), frame, after=None)

    def start_in(self, key: int, frame: torch.Tensor, file_offset: int) -> None:
        """Queue a copy of the place into the frame, behind a write of the page that is still under way."""
        self._refuse_closed()
        self._in.copy(key, frame, self._place(file_offset, frame), after=self._out.outstanding.get(key))

    def wait_out(self, key: int) -> None:
        """Let what the current stream gets from now on run after the page is written."""
        self._out.wait(key)

    def wait_in(self, key: int) -> None:
        """Let what the current stream gets from now on run after the frame is filled."""
        self._in.wait(key)

    def wait(self, key: int) -> None:
        assert key in self._out.outstanding or key in self._in.outstanding, "the page has no transfer to wait for"
        if key in self._out.outstanding:
            self._out.wait(key)
        if key in self._in.outstanding:
            self._in.wait(key)

    def drain(self) -> None:
        """Block the calling thread until no copy touches any frame, and forget all transfers."""
        self._out.drain()
        self._in.drain()

    def statistics(self) -> PagerStatistics:
        """Counters so far; blocks until the copies that were started are done."""
        return PagerStatistics(page_out=self._out.settled(), page_in=self._in.settled())

    def reset_statistics(self) -> None:
        self._out.reset()
        self._in.reset()

    def close(self) -> None:
        """Finish what was started, then unpin and free the host memory. Calling it twice is fine."""
        if self._closed:
            return
        self._closed = True
        self.drain()
        self._host = self._host.new_empty(0)
        _unpin(self._arena)
        self._arena.close()

    def __enter__(self) -> CudaPager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, file_offset: int, frame: torch.Tensor) -> torch.Tensor:
        assert frame.device.type == self._device.type and frame.element_size() == 1
        assert file_offset >= 0 and file_offset + frame.numel() <= self._host.numel(), "the page lies outside"
        return self._host[file_offset : file_offset + frame.numel()]

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PageError("the pager is closed", "compile the step again")


@dataclass(frozen=True, slots=True)
class _Span:
    """Two timed events on one stream: a copy, or the hole that waiting leaves in the compute stream."""

    began: torch.cuda.Event
    ended: torch.cuda.Event

    def elapsed_us(self) -> float:
        return float(self.began.elapsed_time(self.ended)) * 1e3


class _Lane:
    """One direction: its stream, the copies nobody waited for yet, and the times not added up yet."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self.outstanding: dict[int, torch.cuda.Event] = {}
        self._copies: deque[_Span] = deque()
        self._waits: deque[_Span] = deque()
        self._traffic = Traffic()

    def copy(self, key: int, target: torch.Tensor, source: torch.Tensor, after: torch.cuda.Event | None) -> None:
        assert key not in self.outstanding, "a page has one transfer per direction at a time"
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        if after is not None:
            self._stream.wait_event(after)
        span = self._span(self._stream)
        with self._cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        span.ended.record(self._stream)
        self.outstanding[key] = span.ended
        self._copies.append(span)
        self._count(target.numel())

    def wait(self, key: int) -> None:
        event = self.outstanding.pop(key, None)
        assert event is not None, "the page has no such transfer to wait for"
        if event.query():
            return
        current = self._cuda.current_stream(self._device)
        span = self._span(current)
        current.wait_event(event)
        span.ended.record(current)
        self._waits.append(span)

    def drain(self) -> None:
        self._stream.synchronize()
        self.outstanding.clear()

    def settled(self) -> Traffic:
        for span in (*self._copies, *self._waits):
            span.ended.synchronize()
        self._add_up_done()
        return self._traffic

    def reset(self) -> None:
        self.settled()
        self._traffic = Traffic()

    def _span(self, stream: torch.cuda.Stream) -> _Span:
        span = _Span(self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True))
        span.began.record(stream)
        return span

    def _count(self, nbytes: int) -> None:
        traffic = self._traffic
        self._traffic = replace(traffic, transfers=traffic.transfers + 1, nbytes=traffic.nbytes + nbytes)
        self._add_up_done()

    def _add_up_done(self) -> None:
        """Turn finished spans into numbers, so that no step leaves events behind for the next."""
        while self._copies and self._copies[0].ended.query():
            busy_us = self._traffic.busy_us + self._copies.popleft().elapsed_us()
            self._traffic = replace(self._traffic, busy_us=busy_us)
        while self._waits and self._waits[0].ended.query():
            stall_us = self._traffic.stall_us + self._waits.popleft().elapsed_us()
            self._traffic = replace(self._traffic, stall_us=stall_us, stalls=self._traffic.stalls + 1)


def _pin(arena: Arena) -> None:
    import torch

    code = int(torch.cuda.cudart().cudaHostRegister(arena.address, arena.nbytes, 0))
    if code != 0:
        raise PageError(
            f"cannot pin {format_bytes(arena.nbytes)} of host memory (CUDA error {code})",
            "free host memory, raise the limit of locked memory (ulimit -l), or plan with a larger device budget",
        )


def _unpin(arena: Arena) -> None:
    import torch

    torch.cuda.cudart().cudaHostUnregister(arena.address)
