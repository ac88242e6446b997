"""Checkpoints: plain safetensors of one moment, whatever is written meanwhile and wherever it stops."""

from __future__ import annotations

import math
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import DamageError, StoreError
from gradbase.store.checkpoint import (
    PARAMETERS,
    Checkpointer,
    Source,
    Tensor,
    checkpoint_path,
    checksum,
    complete_checkpoints,
    data_file,
    numbers,
    read_checkpoint,
    verify,
)
from gradbase.store.files import DiskFiles, aligned_memory
from gradbase.store.files.testing import Crash, MemoryFile, MemoryFiles

PAGE = 4096
SHAPES = {"a": (3, 8192), "b": (5,), "c": (1000, 3), "d": (0, 4), "e": ()}


@dataclass
class Shard:
    """One tensor a name, cut into pages of 4096 bytes, every second page on this shard."""

    checkpointer: Checkpointer
    values: dict[str, np.ndarray]
    pages: list[tuple[str, int]]

    def fill(self, value: int, keys: range | list[int] | None = None) -> None:
        keys = list(range(len(self.pages))) if keys is None else keys
        self.checkpointer.before_overwrite(keys)
        for key in keys:
            name, start = self.pages[key]
            flat = self.values[name].reshape(-1).view(np.uint8)
            flat[start : start + PAGE].view(np.float32)[:] = value + key


def zeros() -> dict[str, np.ndarray]:
    """In aligned memory, as a slab is: "a" is written from where it lies."""
    return {
        name: np.frombuffer(aligned_memory(4 * math.prod(shape)), np.float32)[: math.prod(shape)].reshape(shape)
        for name, shape in SHAPES.items()
    }


def sharded(files, shard: int = 0, shards: int = 1, values=None, spare_bytes: int = 1 << 20) -> Shard:
    values = values or zeros()
    out = data_file(PARAMETERS, [Tensor(name, "float32", shape) for name, shape in SHAPES.items()])
    pages = [(name, start) for name, value in values.items() for start in range(0, value.nbytes, PAGE)]
    sources = [
        Source(PARAMETERS, name, start, values[name].reshape(-1).view(np.uint8)[start : start + PAGE], key)
        for key, (name, start) in enumerate(pages)
        if key % shards == shard
    ]
    members = [f"shard-{number:04d}" for number in range(shards)]
    checkpointer = Checkpointer(files, members[shard], members, [out], sources, spare_bytes=spare_bytes)
    return Shard(checkpointer, values, pages)


def loaded(files: DiskFiles, number: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(files.root / checkpoint_path(number) / PARAMETERS)


def contents(files, number: int) -> bytes:
    file = files.open(f"{checkpoint_path(number)}/{PARAMETERS}")
    return file.read(0, file.size())


@pytest.fixture
def files(tmp_path) -> DiskFiles:
    return DiskFiles(tmp_path)


def test_plain_safetensors_reads_it(files):
    shard = sharded(files)
    shard.fill(7)
    stats = shard.checkpointer.snapshot().write(3, {"lsn": 12})
    assert stats.written_bytes == sum(value.nbytes for value in shard.values.values()) and stats.kept_bytes == 0
    found = loaded(files, 3)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    for name, value in shard.values.items():
        assert torch.equal(found[name], torch.from_numpy(value))
    (checkpoint,) = complete_checkpoints(files)
    assert checkpoint.number == 3 and checkpoint.parts["shard-0000"].state == {"lsn": 12}
    assert verify(files, checkpoint).nbytes == stats.written_bytes


def test_several_shards_write_one_file(files):
    values = zeros()
    shards = [sharded(files, number, 3, values) for number in range(3)]
    shards[0].fill(1)
    for number in (2, 0):
        shards[number].checkpointer.snapshot().write(8, {})
        assert not complete_checkpoints(files)
    assert read_checkpoint(files, 8).missing == ("shard-0001",)
    shards[1].checkpointer.snapshot().write(8, {})
    (checkpoint,) = complete_checkpoints(files)
    verify(files, checkpoint)
    for name, tensor in loaded(files, 8).items():
        assert torch.equal(tensor, torch.from_numpy(values[name]))


def test_it_holds_the_moment_of_the_snapshot(files):
    shard = sharded(files)
    shard.fill(1)
    before = {name: value.copy() for name, value in shard.values.items()}
    snapshot = shard.checkpointer.snapshot()
    shard.fill(100)
    shard.fill(200, [0, 1])
    stats = snapshot.write(1, {})
    assert stats.saved_bytes == stats.written_bytes
    assert all(torch.equal(tensor, torch.from_numpy(before[name])) for name, tensor in loaded(files, 1).items())
    shard.checkpointer.snapshot().write(2, {})
    assert all(torch.equal(tensor, torch.from_numpy(shard.values[name])) for name, tensor in loaded(files, 2).items())


def test_values_that_change_all_the_while(files):
    """A thread overwrites pages without a pause; every checkpoint is still of one moment."""
    shard = sharded(files, spare_bytes=3 * PAGE)
    shard.fill(0)
    outcomes = []
    for number in range(1, 16):
        expected = {name: value.copy() for name, value in shard.values.items()}
        thread = shard.checkpointer.snapshot().start(number, {}, outcomes.append)
        value = number * 1000
        while thread.is_alive():
            shard.fill(value := value + 1)
        thread.join()
        for name, tensor in loaded(files, number).items():
            assert torch.equal(tensor, torch.from_numpy(expected[name])), (number, name)
    assert [stats.number for stats in outcomes] == list(range(1, 16))


def test_unchanged_pages_are_not_written_again(files):
    shard = sharded(files)
    checkpointer = shard.checkpointer
    for number, keys in enumerate(([0, 1], [1], [2], [], [0])):
        shard.fill(number * 10, keys)
        stats = checkpointer.snapshot().write(number, {})
        checkpointer.retire(number, keep=1)
        written = {0: checkpointer.nbytes, 1: checkpointer.nbytes, 2: 2 * PAGE, 3: PAGE, 4: PAGE}
        assert stats.written_bytes == written[number]
        assert stats.written_bytes + stats.kept_bytes == checkpointer.nbytes
        assert numbers(files) == [number]
        assert all(torch.equal(t, torch.from_numpy(shard.values[name])) for name, t in loaded(files, number).items())
        verify(files, read_checkpoint(files, number))


def test_a_spare_that_somebody_reads_is_left_to_them(files):
    shard = sharded(files)
    shard.fill(1)
    shard.checkpointer.snapshot().write(1, {})
    path = files.root / checkpoint_path(1) / PARAMETERS
    linked = files.root / "mine.safetensors"
    with open(path, "rb") as reader:
        os.link(path, linked)
        shard.checkpointer.snapshot().write(2, {})
        shard.checkpointer.retire(2, keep=1)
        shard.fill(5)
        shard.checkpointer.snapshot().write(3, {})
        assert reader.read() == linked.read_bytes()
    assert torch.equal(safetensors.torch.load_file(linked)["b"], torch.full((5,), 1.0) + shard.pages.index(("b", 0)))


def test_an_open_reader_alone_is_enough(files):
    shard = sharded(files)
    shard.checkpointer.snapshot().write(1, {})
    with open(files.root / checkpoint_path(1) / PARAMETERS, "rb"):
        shard.checkpointer.snapshot().write(2, {})
        shard.checkpointer.retire(2, keep=1)
        assert not files.exists("checkpoints/spare")
    shard.checkpointer.snapshot().write(3, {})
    shard.checkpointer.retire(3, keep=1)
    assert files.exists("checkpoints/spare")


def test_a_restored_shard_goes_on_incrementally(files):
    shard = sharded(files)
    shard.fill(1)
    shard.checkpointer.snapshot().write(1, {"step": 1})
    shard.fill(2, [0])
    shard.checkpointer.snapshot().write(2, {"step": 2})
    shard.checkpointer.retire(2, keep=1)
    again = sharded(files)
    assert again.checkpointer.restore(2) == {"step": 2}
    assert all(np.array_equal(again.values[name], shard.values[name]) for name in SHAPES)
    again.fill(3, [1])
    stats = again.checkpointer.snapshot().write(3, {})
    assert stats.written_bytes == 2 * PAGE  # page 0, which the spare has not, and page 1
    assert all(torch.equal(tensor, torch.from_numpy(again.values[name])) for name, tensor in loaded(files, 3).items())


def test_a_checkpoint_of_another_layout_is_refused(files):
    sharded(files).checkpointer.snapshot().write(1, {})
    with pytest.raises(StoreError, match="another layout"):
        other = sharded(files)
        other.checkpointer.places = [*other.checkpointer.places[:-1], other.checkpointer.places[0]]
        other.checkpointer.places[0] = type(other.checkpointer.places[0])(PARAMETERS, 4097, np.zeros(8, np.uint8))
        other.checkpointer.restore(1)
    with pytest.raises(StoreError, match="checkpoint 2 has no part of shard-0000"):
        sharded(files).checkpointer.restore(2)


def test_one_snapshot_at_a_time_and_one_given_up_loses_nothing(files):
    shard = sharded(files)
    shard.checkpointer.snapshot().write(1, {})
    shard.fill(4, [0])
    snapshot = shard.checkpointer.snapshot()
    with pytest.raises(StoreError, match="being written"):
        shard.checkpointer.snapshot()
    snapshot.close()
    shard.checkpointer.snapshot().write(2, {})
    assert torch.equal(loaded(files, 2)["a"], torch.from_numpy(shard.values["a"]))


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(tmp_path):
    files = MemoryFiles(capacity=200_000)
    shard = sharded(files)
    shard.fill(1)
    shard.checkpointer.snapshot().write(1, {})
    before = contents(files, 1)
    shard.fill(2, [0, 3])
    with pytest.raises(StoreError, match=r"(?s)cannot write checkpoint 2 of shard-0000: No space left.*bytes are free"):
        shard.checkpointer.snapshot().write(2, {})
    assert numbers(files) == [1] and contents(files, 1) == before
    files.capacity = 1 << 20
    shard.checkpointer.snapshot().write(3, {})
    assert contents(files, 3) != before and [each.number for each in complete_checkpoints(files)] == [1, 3]


def test_who_waits_for_room_is_released_when_the_disk_fails():
    files = MemoryFiles(capacity=1000)
    shard = sharded(files, spare_bytes=0)
    snapshot = shard.checkpointer.snapshot()
    waiting = threading.Thread(target=lambda: shard.fill(1))
    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()
    with pytest.raises(StoreError):
        snapshot.write(1, {})
    waiting.join(10)
    assert not waiting.is_alive()


@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 30), stop_after=st.integers(1, 90), direct=st.booleans(), data=st.data())
def test_a_crash_at_any_point_leaves_a_checkpoint_as_new_as_promised(seed, stop_after, direct, data):
    """Model: what was in memory at each number. What was written last, or a newer one, is there, and it is that."""
    files = MemoryFiles(seed, direct=direct)
    model: dict[int, bytes] = {}
    written, number = 0, 0
    for _ in range(2):
        files.stop_after, files.calls = stop_after, 0
        shard = sharded(files)
        try:
            if written:
                number = max(each.number for each in complete_checkpoints(files))
                shard.checkpointer.restore(number)
            for _ in range(4):
                number += 1
                shard.fill(number * 100, data.draw(st.lists(st.integers(0, 9), unique=True)))
                model[number] = b"".join(value.tobytes() for value in shard.values.values())
                shard.checkpointer.snapshot().write(number, {})
                written = number
                if data.draw(st.booleans()):
                    shard.checkpointer.retire(number, keep=1)
        except Crash:
            pass
        files = files.after_crash()
        complete = complete_checkpoints(files)
        assert not written or complete and complete[-1].number >= written
        for each in complete:
            verify(files, each)
            again = sharded(files)
            again.checkpointer.restore(each.number)
            assert b"".join(value.tobytes() for value in again.values.values()) == model[each.number]
        number = complete[-1].number if complete else 0
        written = number


@given(position=st.integers(0), bit=st.integers(0, 7))
@settings(max_examples=100)
def test_every_flipped_bit_is_found(position, bit):
    files = MemoryFiles()
    shard = sharded(files)
    shard.fill(3)
    shard.checkpointer.snapshot().write(1, {})
    names = [f"{checkpoint_path(1)}/{name}" for name in files.names(checkpoint_path(1))]
    sizes = [files.open(name).size() for name in names]
    position %= sum(sizes)
    name = names[0] if position < sizes[0] else names[1]
    files.flip(name, position if position < sizes[0] else position - sizes[0], bit)
    with pytest.raises(DamageError) as caught:
        verify(files, read_checkpoint(files, 1))
    assert caught.value.path == name


@given(seed=st.integers(0, 1 << 32), nbytes=st.integers(1, 20_000), bit=st.integers(0))
def test_the_checksum_sees_every_changed_bit_and_every_exchanged_block(seed, nbytes, bit):
    data = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    other = data.copy()
    other[bit // 8 % nbytes] ^= 1 << bit % 8
    assert checksum(other) != checksum(data)
    if nbytes >= 2 * PAGE:
        exchanged = np.concatenate([data[PAGE : 2 * PAGE], data[:PAGE], data[2 * PAGE :]])
        assert checksum(exchanged) != checksum(data)


def test_the_checksum_is_what_the_readme_says():
    data = bytes(range(256)) * 50
    padded = data.ljust(-(-len(data) // PAGE) * PAGE, b"\0")
    sums = [
        sum(int.from_bytes(padded[at : at + 8], "little") for at in range(start, start + PAGE, 8)) % (1 << 64)
        for start in range(0, len(padded), PAGE)
    ]
    expected = zlib.crc32(b"".join(each.to_bytes(8, "little") for each in sums))
    assert checksum(np.frombuffer(data, np.uint8)) == expected


def test_a_missing_file_is_damage(files):
    sharded(files).checkpointer.snapshot().write(1, {})
    Path(files.root, checkpoint_path(1), PARAMETERS).unlink()
    with pytest.raises(DamageError, match="is missing"):
        verify(files, read_checkpoint(files, 1))


def test_what_is_being_written_from_where_it_lies_is_not_overwritten(monkeypatch):
    files, writing, go_on = MemoryFiles(), threading.Event(), threading.Event()
    real = MemoryFile.write_all

    def slow(*arguments):
        writing.set()
        assert go_on.wait(10)
        real(*arguments)

    monkeypatch.setattr(MemoryFile, "write_all", slow)
    shard = sharded(files)
    shard.fill(1)
    expected = {name: value.copy() for name, value in shard.values.items()}
    thread = shard.checkpointer.snapshot().start(1, {}, lambda outcome: None)
    assert writing.wait(10)
    overwriting = threading.Thread(target=lambda: shard.fill(500))
    overwriting.start()
    overwriting.join(0.05)
    held_up = overwriting.is_alive()
    go_on.set()
    overwriting.join(10)
    thread.join(10)
    again = sharded(files)
    again.checkpointer.restore(1)
    assert held_up and all(np.array_equal(again.values[name], expected[name]) for name in SHAPES)
