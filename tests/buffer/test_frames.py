import ctypes
import gc
import io
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from gradbase.buffer import Arena, _frames, load_frames

aten = torch.ops.aten
MIB = 1 << 20

pytestmark = pytest.mark.skipif(load_frames() is None, reason="no planned frames here: see the log for the reason")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def frames():
    frames = load_frames()
    yield frames
    frames.disarm()


@pytest.fixture
def arena(frames):
    arena = Arena(32 * MIB)
    frames.adopt(arena)
    return arena


def rand(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


def conv2d():
    image, weight, bias = rand(4, 3, 32, 32), rand(8, 3, 3, 3), rand(8)
    return lambda: aten.convolution(image, weight, bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def conv2d_backward():
    gradient, image, weight = rand(4, 8, 32, 32), rand(4, 3, 32, 32), rand(8, 3, 3, 3)
    rest = ([8], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])
    return lambda: aten.convolution_backward(gradient, image, weight, *rest)


def layer_norm():
    rows, weight, bias = rand(64, 128), rand(128), rand(128)
    return lambda: aten.native_layer_norm(rows, [128], weight, bias, 1e-5)


def layer_norm_backward():
    rows, weight, bias = rand(64, 128), rand(128), rand(128)
    _, mean, rstd = aten.native_layer_norm(rows, [128], weight, bias, 1e-5)
    gradient = rows + 1
    return lambda: aten.native_layer_norm_backward(
        gradient, rows, [128], mean, rstd, weight, bias, [True, True, True]
    )


def batch_norm_backward():
    image, weight, mean, rstd = rand(4, 8, 16, 16), rand(8), rand(8), rand(8).abs()
    gradient = rand(4, 8, 16, 17)[..., :16].contiguous()
    return lambda: aten.native_batch_norm_backward(
        gradient, image, weight, None, None, mean, rstd, True, 1e-5, [True, True, True]
    )


def attention():
    query, key, value = rand(2, 4, 64, 32), rand(2, 4, 64, 32) + 1, rand(2, 4, 64, 32) - 1
    return lambda: aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)


def attention_backward():
    query, key, value = rand(2, 4, 64, 32), rand(2, 4, 64, 32) + 1, rand(2, 4, 64, 32) - 1
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
    gradient = out + 0.5
    return lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, query, key, value, out, logsumexp, 0.0, True
    )


def lstm():
    torch.manual_seed(0)
    layer = torch.nn.LSTM(16, 32, batch_first=True)
    sequence = rand(4, 12, 16)
    return lambda: layer(sequence)


def lstm_layer():
    weights = (rand(128, 16), rand(128, 32), rand(128), rand(128) + 1)
    sequence, state = rand(12, 4, 16), torch.zeros(1, 4, 32)
    rest = (False, [], 2, 32, 1, True, False, False, True)  # mode 2 is LSTM; the last: for training
    return lambda: aten.mkldnn_rnn_layer(sequence, *weights, state[0], state[0], *rest)


KERNELS = [
    conv2d,
    conv2d_backward,
    layer_norm,
    layer_norm_backward,
    batch_norm_backward,
    attention,
    attention_backward,
    lstm,
    lstm_layer,
]


@dataclass
class Planned:
    """A kernel's results, each storage with a request number and a frame."""

    triples: list
    log: object
    plain: list


def results(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def plan(frames, arena, call):
    call()
    value, log = frames.record(call)
    triples, position = {}, 0
    for tensor in results(value):
        storage = tensor.untyped_storage()
        number = log.index_of(storage.data_ptr())
        if number is None or number in triples:
            continue
        triples[number] = (number, arena.address + position, storage.nbytes())
        position += -(-storage.nbytes() // 4096) * 4096
    return Planned([triples[number] for number in sorted(triples)], log, [bits(tensor) for tensor in results(value)])


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_results_land_in_their_frames_with_the_same_bits(frames, arena, kernel):
    call = kernel()
    planned = plan(frames, arena, call)
    assert planned.triples, "the kernel allocates its results"
    expectation = frames.prepare(planned.triples)
    for _ in range(2):
        frames.expect(expectation)
        again = results(call())
        assert frames.disarm() == len(planned.triples)
        assert [bits(tensor) for tensor in again] == planned.plain
        addresses = {tensor.untyped_storage().data_ptr() for tensor in again}
        assert addresses >= {address for _, address, _ in planned.triples}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_any_request_may_be_answered_with_a_frame(frames, arena, kernel):
    """Scratch of a kernel too, even what it frees through the allocator's raw interface."""
    call = kernel()
    planned = plan(frames, arena, call)
    for allocation in planned.log.allocations:
        frames.expect(frames.prepare([(allocation.index, arena.address, allocation.nbytes)]))
        again = results(call())
        assert frames.disarm() == 1
        assert [bits(tensor) for tensor in again] == planned.plain
        del again


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_the_recorded_peak_is_sane(frames, arena, kernel):
    call = kernel()
    log = plan(frames, arena, call).log
    inside = [allocation.nbytes for allocation in log.allocations if allocation.freed_inside]
    outside = [allocation.nbytes for allocation in log.allocations if not allocation.freed_inside]
    assert max(inside, default=0) <= log.peak_extra_bytes <= sum(inside)
    assert sum(outside) <= log.peak_bytes <= sum(outside) + log.peak_extra_bytes
    assert [allocation.index for allocation in log.allocations] == list(range(len(log.allocations)))


def test_a_size_that_does_not_match_gets_ordinary_memory(frames, arena):
    call = layer_norm()
    planned = plan(frames, arena, call)
    number, address, nbytes = planned.triples[0]
    others = planned.triples[1:]
    frames.expect(frames.prepare([(number, address, nbytes + 64), *others]))
    again = results(call())
    assert frames.disarm() == len(others)
    assert [bits(tensor) for tensor in again] == planned.plain
    assert address not in {tensor.data_ptr() for tensor in again}


def test_requests_for_nothing_are_not_counted(frames, arena):
    frames.expect(frames.prepare([(1, arena.address, 256)]))
    first, _, second = torch.empty(64), torch.empty(0), torch.empty(64)
    assert frames.disarm() == 1
    assert second.data_ptr() == arena.address != first.data_ptr()


def test_nothing_is_served_after_disarm_or_after_the_last_frame(frames, arena):
    expectation = frames.prepare([(0, arena.address, 256)])
    frames.expect(expectation)
    taken, after = torch.empty(64), torch.empty(64)
    assert taken.data_ptr() == arena.address != after.data_ptr()
    assert frames.disarm() == 1
    frames.expect(expectation)
    assert frames.disarm() == 0
    assert torch.empty(64).data_ptr() != arena.address


def test_a_kernel_that_raises_can_be_disarmed(frames, arena):
    frames.expect(frames.prepare([(0, arena.address, 256)]))
    with pytest.raises(RuntimeError):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    frames.disarm()
    assert torch.empty(64).data_ptr() != arena.address


def test_other_threads_are_not_affected(frames, arena):
    addresses = []
    frames.expect(frames.prepare([(0, arena.address, 256)]))
    thread = threading.Thread(target=lambda: addresses.append(torch.empty(64).data_ptr()))
    thread.start()
    thread.join()
    mine = torch.empty(64)
    assert frames.disarm() == 1
    assert mine.data_ptr() == arena.address and addresses[0] != arena.address


def test_every_thread_can_be_armed_for_itself(frames, arena):
    failures = []

    def work(slot):
        address = arena.address + slot * 4096
        expectation = frames.prepare([(1, address, 256)])
        for _ in range(300):
            frames.expect(expectation)
            _, second = torch.empty(32), torch.empty(64)
            if frames.disarm() != 1 or second.data_ptr() != address:
                failures.append(slot)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_recorded_blocks_are_freed_later_and_elsewhere(frames):
    kept = []
    for _ in range(50):
        value, log = frames.record(lambda: [torch.ones(1000) for _ in range(3)])
        assert [allocation.freed_inside for allocation in log.allocations] == [False] * 3
        kept.append(value)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert torch.ones(1000).sum() == 1000


def test_a_block_freed_by_another_thread_while_recording_is_seen(frames):
    def call():
        block = [torch.empty(4000, dtype=torch.uint8)]
        thread = threading.Thread(target=block.clear)
        thread.start()
        thread.join()
        return torch.empty(100, dtype=torch.uint8)

    _, log = frames.record(call)
    assert [(each.nbytes, each.freed_inside) for each in log.allocations] == [(4000, True), (100, False)]
    assert (log.peak_bytes, log.peak_extra_bytes) == (4000, 4000)


def test_other_threads_are_not_recorded(frames):
    def call():
        thread = threading.Thread(target=lambda: torch.empty(4000))
        thread.start()
        thread.join()

    assert frames.record(call)[1].allocations == ()


def test_recording_ends_when_the_call_raises(frames):
    def fail():
        torch.empty(10)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        frames.record(fail)
    assert len(frames.record(lambda: torch.empty(10))[1].allocations) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5000), st.just("free first"), st.just("free last")), max_size=30))
def test_recorded_peaks_equal_a_plain_count(script):
    held, live, peak = [], 0, 0
    for step in script:
        if isinstance(step, int):
            held.append(step)
            live += step
            peak = max(peak, live)
        elif held:
            live -= held.pop(0 if step == "free first" else -1)
    def call():
        blocks = []
        for step in script:
            if isinstance(step, int):
                blocks.append(torch.empty(step, dtype=torch.uint8))
            elif blocks:
                del blocks[0 if step == "free first" else -1]
        return blocks

    _, log = load_frames().record(call)
    assert log.peak_bytes == peak
    assert sorted(each.nbytes for each in log.allocations if not each.freed_inside) == sorted(held)


def test_misplaced_frames_are_mistakes(frames, arena):
    with pytest.raises(AssertionError, match="outside every adopted arena"):
        frames.prepare([(0, arena.address + arena.nbytes - 64, 128)])
    with pytest.raises(AssertionError, match="multiple of 64"):
        frames.prepare([(0, arena.address + 8, 64)])
    with pytest.raises(AssertionError, match="ascend"):
        frames.prepare([(1, arena.address, 64), (0, arena.address + 64, 64)])


def test_many_frames_at_once(frames, arena):
    most = _frames.FRAMES_MAX
    frames.expect(frames.prepare([(number, arena.address + number * 64, 64) for number in range(most)]))
    blocks = [torch.empty(16) for _ in range(most)]
    assert frames.disarm() == most
    assert [block.data_ptr() for block in blocks] == [arena.address + number * 64 for number in range(most)]
    with pytest.raises(AssertionError, match="at most"):
        frames.prepare([(number, arena.address, 64) for number in range(most + 1)])


def test_recordings_do_not_nest(frames):
    with pytest.raises(AssertionError, match="do not nest"):
        frames.record(lambda: frames.record(lambda: None))


def test_an_arena_is_forgotten_when_it_is_collected(frames):
    arena = Arena(MIB)
    frames.adopt(arena)
    frames.adopt(arena)
    address = arena.address
    frames.prepare([(0, address, 64)])
    del arena
    gc.collect()
    with pytest.raises(AssertionError, match="outside every adopted arena"):
        frames.prepare([(0, address, 64)])


def test_loading_again_gives_the_same_allocator(frames):
    assert load_frames() is frames
    assert frames._library.gb_install() == 0


def test_expecting_nothing_is_fine(frames):
    frames.expect(frames.prepare([]))
    torch.empty(10)
    assert frames.disarm() == 0


def test_saving_numpy_and_shared_memory_work_as_before(frames, arena):
    value, _ = frames.record(lambda: torch.arange(1000.0))
    frames.expect(frames.prepare([(0, arena.address, 4000)]))
    framed = torch.empty(1000).copy_(value)
    assert frames.disarm() == 1 and framed.data_ptr() == arena.address
    for tensor in (value, framed):
        file = io.BytesIO()
        torch.save(tensor, file)
        file.seek(0)
        assert torch.equal(torch.load(file), value)
        assert np.array_equal(tensor.numpy(), np.arange(1000.0, dtype=np.float32))
        assert torch.equal(torch.from_numpy(tensor.numpy()), value)
        assert torch.equal(tensor.clone().share_memory_(), value)
        assert torch.equal(torch._lazy_clone(tensor).add_(1), value + 1)


def test_a_framed_result_that_grows_moves_to_ordinary_memory(frames, arena):
    frames.expect(frames.prepare([(0, arena.address, 256)]))
    framed = torch.empty(64).fill_(2.0)
    frames.disarm()
    framed.resize_(4096)
    assert framed.data_ptr() != arena.address and framed[:64].sum() == 128
    assert bytes(arena.memory(0, 4)) == b"\x00\x00\x00\x40"


def test_the_profiler_still_reports_memory(frames):
    def reported(call):
        with torch.profiler.profile(profile_memory=True) as profile:
            kept = call()
        del kept
        return sum(event.self_cpu_memory_usage for event in profile.events() if event.name == "aten::empty")

    assert reported(lambda: torch.empty(MIB, dtype=torch.uint8)) >= MIB
    assert reported(lambda: frames.record(lambda: torch.empty(MIB, dtype=torch.uint8))) >= MIB


def test_a_loader_with_workers_works(frames):
    data = torch.utils.data.TensorDataset(torch.arange(32.0))
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=1)
    assert torch.cat([batch for (batch,) in loader]).sum() == 31 * 16


def test_without_a_compiler_there_are_no_frames_and_the_log_says_why(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING, "gradbase.buffer"):
        assert _frames._load() is None
    assert "no C++ compiler" in caplog.text and "copied" in caplog.text


def test_source_that_does_not_compile_is_reported_with_the_compiler_s_words(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_frames, "_source", lambda: "int broken( { return 0; }")
    with caplog.at_level(logging.WARNING, "gradbase.buffer"):
        assert _frames._load() is None
    assert "error:" in caplog.text
    assert list((tmp_path / "gradbase" / "native").iterdir()) == []


def test_a_damaged_library_is_compiled_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = 'extern "C" int gb_answer() { return 42; }'
    path = _frames.cache_directory() / f"frames-{_frames._build_key(source)}.so"
    path.write_bytes(b"\x7fELF, once")
    assert _frames._open_library(source).gb_answer() == 42
    assert "compiling it again" in caplog.text


def test_processes_may_compile_at_once(tmp_path):
    """With a source of one function, because torch's headers take a compiler many seconds."""
    code = """
from gradbase.buffer import _frames
assert _frames._open_library('extern "C" int gb_answer() { return 42; }').gb_answer() == 42
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    children = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [child.wait(timeout=280) for child in children] == [0, 0]
    left = list((tmp_path / "gradbase" / "native").iterdir())
    assert len(left) == 1 and left[0].suffix == ".so"
    assert ctypes.PyDLL(str(left[0])).gb_answer() == 42
