from contextlib import contextmanager

import pytest
import torch

from gradbase.buffer import CudaPager, DeviceArena
from gradbase.buffer.testing import PagerBench, frames_of, pager_checks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MIB = 1 << 20


def put(frame, data):
    frame.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def get(frame):
    torch.cuda.synchronize()
    return bytes(frame.cpu().numpy())


@contextmanager
def cuda_bench():
    arena = DeviceArena(48 * MIB, "cuda")
    with CudaPager(16 * MIB) as pager:
        yield PagerBench(pager, frames_of(arena), put=put, get=get)


@pytest.mark.parametrize("check", pager_checks(), ids=lambda check: check.__name__)
def test_conformance(check):
    with cuda_bench() as bench:
        check(bench)


def test_a_kernel_after_the_wait_sees_the_page_and_one_before_it_does_not_disturb_it():
    """The order is the streams', with no synchronization by the host between."""
    arena = DeviceArena(64 * MIB, "cuda")
    with CudaPager(32 * MIB) as pager:
        values = arena.tensor(0, "float32", (4 * MIB,), (1,))
        page = arena.memory(0, 16 * MIB)
        for round_ in range(10):
            values.fill_(float(round_))
            pager.start_out(1, page, 0)
            pager.wait_out(1)
            values.fill_(-1.0)
            pager.start_in(1, page, 0)
            pager.wait_in(1)
            values.add_(1.0)
            assert values.unique().tolist() == [round_ + 1.0]


def test_copies_are_timed_by_the_device():
    arena = DeviceArena(16 * MIB, "cuda")
    with CudaPager(16 * MIB) as pager:
        pager.start_out(1, arena.memory(0, 16 * MIB), 0)
        pager.wait_out(1)
        seen = pager.statistics().page_out
    assert (seen.transfers, seen.nbytes) == (1, 16 * MIB)
    assert 1 < seen.busy_us < 1_000_000


def test_host_memory_is_pinned_and_given_back():
    for _ in range(3):
        pager = CudaPager(64 * MIB)
        assert pager._host.is_pinned()
        pager.close()
        pager.close()
