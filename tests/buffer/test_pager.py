import errno
import gc
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradbase.buffer import Arena, PageFile, Pager
from gradbase.buffer.testing import POISON, MemoryPager, PagerBench, frames_of, pager_checks
from gradbase.common.errors import PageError

MIB = 1 << 20
PAGE = 4096


@contextmanager
def disk_bench(directory, **options):
    threads = options.pop("threads", 1)
    arena = Arena(48 * MIB, prefault=False)
    with PageFile(directory, 16 * MIB, **options) as pagefile, Pager(pagefile, threads) as pager:
        yield PagerBench(pager, frames_of(arena))


@contextmanager
def memory_bench(when):
    yield PagerBench(MemoryPager(16 * MIB, when=when), frames_of(Arena(48 * MIB, prefault=False)))


BENCHES = {
    "direct file": lambda path: disk_bench(path),
    "cached file": lambda path: disk_bench(path, direct=False),
    "three threads": lambda path: disk_bench(path, threads=3),
    "in memory, early": lambda path: memory_bench("start"),
    "in memory, late": lambda path: memory_bench("wait"),
}


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize("check", pager_checks(), ids=lambda check: check.__name__)
def test_conformance(tmp_path, bench, check):
    with BENCHES[bench](tmp_path) as opened:
        check(opened)


class GatedFile:
    """A page file in memory whose transfers wait for `open`, and fail at the places in `broken`."""

    def __init__(self):
        self.log = []
        self.open = threading.Event()
        self.broken = set()
        self.content = {}

    def write(self, offset, memory):
        self._pass("write", offset)
        self.content[offset] = bytes(memory)

    def read(self, offset, memory):
        self._pass("read", offset)
        memory[:] = self.content.get(offset, bytes(len(memory)))

    def _pass(self, verb, offset):
        assert self.open.wait(30)
        self.log.append((verb, offset))
        if offset in self.broken:
            raise PageError(f"{verb} at {offset} failed")


@pytest.fixture
def gated():
    pagefile = GatedFile()
    pager = Pager(pagefile)
    yield pagefile, pager
    pagefile.open.set()
    pager.close()


def frame(content=b"x"):
    return memoryview(bytearray(content * PAGE))


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_transfers_start_in_the_order_they_were_given(gated):
    pagefile, pager = gated
    pagefile.open.set()
    for key in range(50):
        pager.start_out(key, frame(), key * PAGE)
    for key in range(50):
        pager.wait_out(key)
    assert pagefile.log == [("write", key * PAGE) for key in range(50)]


def test_a_read_follows_the_queued_write_of_its_page(gated):
    pagefile, pager = gated
    target = frame(b"-")
    pager.start_out(1, frame(b"a"), 0)
    pager.start_out(2, frame(b"b"), PAGE)
    pager.start_in(2, target, PAGE)
    time.sleep(0.05)
    assert pagefile.log == [] and bytes(target) == b"-" * PAGE
    pagefile.open.set()
    pager.wait_in(2)
    assert pagefile.log == [("write", 0), ("write", PAGE), ("read", PAGE)]
    assert bytes(target) == b"b" * PAGE
    pager.drain()


def test_the_directions_do_not_wait_for_each_other(gated):
    """A read of another page overtakes a write that hangs."""
    pagefile, pager = gated

    class HangingWrites(GatedFile):
        def read(self, offset, memory):
            self.log.append(("read", offset))

    hanging = HangingWrites()
    with Pager(hanging) as other:
        other.start_out(1, frame(), 0)
        other.start_in(2, frame(), PAGE)
        other.wait_in(2)
        assert hanging.log == [("read", PAGE)]
        hanging.open.set()
        other.wait_out(1)


def test_a_failure_is_raised_where_it_is_waited_for_and_once(gated):
    pagefile, pager = gated
    pagefile.broken = {PAGE}
    pagefile.open.set()
    pager.start_out(1, frame(), PAGE)
    pager.start_out(2, frame(), 2 * PAGE)
    pager.wait_out(2)
    with pytest.raises(PageError, match="write at 4096 failed"):
        pager.wait_out(1)
    pager.drain()
    pagefile.broken = set()
    pager.start_out(1, frame(), PAGE)
    pager.wait_out(1)


def test_a_read_after_a_failed_write_fails_with_its_error(gated):
    pagefile, pager = gated
    pagefile.broken = {PAGE}
    pager.start_out(1, frame(), PAGE)
    pager.start_in(1, frame(), PAGE)
    pagefile.open.set()
    with pytest.raises(PageError, match="write at 4096 failed"):
        pager.wait_in(1)
    assert ("read", PAGE) not in pagefile.log
    with pytest.raises(PageError, match="write at 4096 failed"):
        pager.wait_out(1)


def test_a_disk_error_reaches_the_wait(tmp_path):
    class Full:
        def pwritev(self, fd, buffers, offset):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        preadv = staticmethod(os.preadv)

    with PageFile(tmp_path, MIB, system=Full()) as pagefile, Pager(pagefile) as pager:
        pager.start_out(1, Arena(PAGE).memory(0, PAGE), 0)
        with pytest.raises(PageError, match="No space left"):
            pager.wait_out(1)


def test_a_mistake_on_the_io_thread_reaches_the_wait(tmp_path):
    with PageFile(tmp_path, MIB) as pagefile, Pager(pagefile) as pager:
        pager.start_out(1, Arena(PAGE).memory(0, PAGE), 17)
        with pytest.raises(AssertionError, match="multiple of 4096"):
            pager.wait_out(1)


def test_two_transfers_of_a_page_in_one_direction_are_a_mistake(gated):
    _, pager = gated
    pager.start_in(1, frame(), 0)
    with pytest.raises(AssertionError, match="one transfer per direction"):
        pager.start_in(1, frame(), 0)
    with pytest.raises(AssertionError, match="read completely"):
        pager.start_out(1, frame(), 0)


def test_an_interrupt_in_wait_leaves_the_pager_usable(gated):
    pagefile, pager = gated
    target = frame(b"-")
    pager.start_out(1, frame(b"a"), 0)
    pager.start_in(1, target, 0)
    waiting = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        pager.wait_in(1)
    waiting.join()
    assert not pager.idle()
    threading.Timer(0.05, pagefile.open.set).start()
    pager.drain()
    assert pager.idle() and bytes(target) == b"a" * PAGE
    pager.start_out(1, frame(b"b"), 0)
    pager.start_in(1, target, 0)
    pager.wait(1)
    assert bytes(target) == b"b" * PAGE


def test_an_interrupt_in_drain_can_be_followed_by_another(gated):
    pagefile, pager = gated
    pager.start_out(1, frame(), 0)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pager.drain()
    pagefile.open.set()
    pager.drain()
    assert pagefile.log == [("write", 0)]


def test_drain_raises_what_nobody_waited_for_when_all_is_quiet(gated):
    pagefile, pager = gated
    pagefile.broken = {0}
    pager.start_out(1, frame(), 0)
    pager.start_out(2, frame(), PAGE)
    pagefile.open.set()
    with pytest.raises(PageError, match="write at 0 failed"):
        pager.drain()
    assert pagefile.log == [("write", 0), ("write", PAGE)]
    pager.drain()


def test_close_cancels_what_has_not_begun(gated):
    pagefile, pager = gated
    for key in range(4):
        pager.start_out(key, frame(), key * PAGE)
    threading.Timer(0.1, pagefile.open.set).start()
    pager.close()
    assert len(pagefile.log) <= 1
    with pytest.raises(PageError, match="cancelled"):
        pager.wait_out(3)


def test_threads_end_when_the_pager_is_forgotten():
    pagefile = GatedFile()
    pagefile.open.set()
    pager = Pager(pagefile)
    threads = [worker.thread for worker in pager._workers]
    assert all(thread.is_alive() for thread in threads)
    del pager
    gc.collect()
    assert until(lambda: not any(thread.is_alive() for thread in threads))


def test_an_idle_thread_keeps_no_frame_alive(tmp_path):
    with PageFile(tmp_path, MIB) as pagefile, Pager(pagefile) as pager:
        data = bytearray(PAGE)
        memory = memoryview(data)
        pager.start_out(1, memory, 0)
        pager.wait_out(1)
        memory.release()

        def growable():
            try:
                data.append(0)  # refused while anybody has a view of it
            except BufferError:
                return False
            return True

        assert until(growable)


def test_stalls_are_counted_and_timed(gated):
    pagefile, pager = gated
    pager.start_out(1, frame(), 0)
    threading.Timer(0.1, pagefile.open.set).start()
    pager.wait_out(1)
    pager.start_in(1, frame(), 0)
    assert until(pager.idle)
    pager.wait_in(1)
    seen = pager.statistics()
    assert seen.page_out.stalls == 1 and 20_000 < seen.page_out.stall_us < 10_000_000
    assert seen.page_out.busy_us >= 20_000
    assert seen.page_in.stalls == 0 and seen.page_in.stall_us == 0


STEPS = st.lists(st.tuples(st.sampled_from(["out", "in", "wait"]), st.integers(0, 4)), max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, bench=st.sampled_from(["direct file", "three threads", "in memory, early", "in memory, late"]))
def test_a_pager_is_a_dictionary(tmp_path, steps, bench):
    """Any legal sequence of calls gives what a dictionary of pages gives."""
    with BENCHES[bench](tmp_path) as opened:
        pager, pages, out, coming = opened.pager, {}, {}, {}
        for turn, (verb, key) in enumerate(steps):
            if verb == "out" and key not in out and key not in coming:
                out[key] = opened.frames(2 * PAGE)
                pages[key] = bytes([turn + 1]) * 2 * PAGE
                out[key][:] = pages[key]
                pager.start_out(key, out[key], key * 4 * PAGE)
            elif verb == "in" and key in pages and key not in coming:
                coming[key] = opened.frames(2 * PAGE)
                pager.start_in(key, coming[key], key * 4 * PAGE)
            elif verb == "wait" and (key in out or key in coming):
                pager.wait(key)
                out.pop(key, None)
                if key in coming:
                    assert bytes(coming.pop(key)) == pages[key]
        pager.drain()
        for key, target in coming.items():
            assert bytes(target) == pages[key]


def test_the_late_pager_shows_a_frame_that_was_used_too_early():
    pager = MemoryPager(MIB)
    data = frame(b"a")
    pager.start_out(1, data, 0)
    data[:] = frame(b"b")  # the mistake: the frame was still being written
    pager.wait_out(1)
    target = frame(b"-")
    pager.start_in(1, target, 0)
    assert bytes(target) == bytes([POISON]) * PAGE
    pager.wait_in(1)
    assert bytes(target) == b"b" * PAGE


def test_the_memory_pager_can_poison_what_was_given_up():
    pager = MemoryPager(MIB, poison_written=True)
    data = frame(b"a")
    pager.start_out(1, data, 0)
    assert bytes(data) == b"a" * PAGE
    pager.wait_out(1)
    assert bytes(data) == bytes([POISON]) * PAGE
