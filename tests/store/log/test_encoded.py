"""Physical records of gradients that went through a codec: few bytes, and exactly what was applied comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import DamageError, StoreError
from gradbase.store.codec import Codec, decode, encode, parse_codec
from gradbase.store.files.testing import Crash, MemoryFiles
from gradbase.store.layout import Layout, lay_out, specs_of_model
from gradbase.store.log import LogReader, from_record, open_log, to_record
from gradbase.store.logged import ENCODED, RAW, encoded_update, raw_update
from gradbase.store.machine.messages import PushRecord

STORE = bytes(range(16))
BLOCK = 4096
LANES = 2


class Net(torch.nn.Module):
    """Pages of several dtypes, one of them (3 bytes) such that those behind it are not aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(40, 90)
        self.small = torch.nn.Parameter(torch.zeros(700, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(7))


LAYOUT = lay_out(specs_of_model(Net()), 1, page_bytes=4096)
PAGES = LAYOUT.of_shard(0)


def codecs(text: str) -> dict[int, Codec]:
    return {page.number: parse_codec(text) for page in PAGES if LAYOUT.tensors[page.tensor].kind == "parameter"}


def pushes(text: str, seed: int, layout: Layout = LAYOUT) -> list[bytes]:
    """What every lane pushed, as it came out of its codec."""
    generator = torch.Generator().manual_seed(seed)
    named = codecs(text)
    lanes = []
    for _ in range(LANES):
        parts = []
        for page in layout.of_shard(0):
            dtype = getattr(torch, layout.tensors[page.tensor].dtype)
            values = torch.randn(page.numel, generator=generator).mul_(10.0 ** (seed % 9 - 5)).to(dtype)
            if page.number in named:
                values = decode(encode(named[page.number], values), page.numel, dtype)
            parts.append(values.view(torch.uint8).numpy().tobytes())
        lanes.append(b"".join(parts))
    return lanes


def as_bytes(buffers: list) -> memoryview:
    return memoryview(b"".join(bytes(memoryview(each).cast("B")) for each in buffers))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(("bf16", "int8", "topk:0.05", "topk:1", "onebit")), st.integers(0, 10_000))
def test_what_was_applied_comes_back_bit_for_bit(text: str, seed: int) -> None:
    lanes = pushes(text, seed)
    codec, buffers = encoded_update(LAYOUT, 0, codecs(text), lanes)
    assert codec == ENCODED
    assert raw_update(LAYOUT, 0, codec, as_bytes(buffers)) == b"".join(lanes)


@pytest.mark.parametrize(("text", "times"), (("bf16", 1.4), ("int8", 2.5), ("topk:0.01", 8.0), ("onebit", 5.0)))
def test_it_takes_few_bytes(text: str, times: float) -> None:
    lanes = pushes(text, 3)
    _, buffers = encoded_update(LAYOUT, 0, codecs(text), lanes)
    assert sum(map(len, lanes)) > times * len(as_bytes(buffers))


def test_what_a_codec_cannot_give_back_is_logged_as_it_is() -> None:
    lanes = pushes("none", 5)
    codec, buffers = encoded_update(LAYOUT, 0, codecs("topk:0.01"), lanes)
    assert raw_update(LAYOUT, 0, codec, as_bytes(buffers)) == b"".join(lanes)
    infinite = [torch.full((len(lane) // 2,), float("inf"), dtype=torch.bfloat16) for lane in lanes]
    held = [each.view(torch.uint8).numpy().tobytes().ljust(len(lanes[0]), b"\0") for each in infinite]
    codec, buffers = encoded_update(LAYOUT, 0, codecs("int8"), held)
    assert raw_update(LAYOUT, 0, codec, as_bytes(buffers)) == b"".join(held)


def test_what_a_warm_up_kept_more_of_is_logged_in_its_bytes() -> None:
    lanes = pushes("topk:0.2", 4)
    codec, buffers = encoded_update(LAYOUT, 0, codecs("topk:0.01"), lanes)
    assert sum(map(len, lanes)) > 1.5 * len(as_bytes(buffers))
    assert raw_update(LAYOUT, 0, codec, as_bytes(buffers)) == b"".join(lanes)


def test_without_codecs_it_is_raw() -> None:
    lanes = pushes("none", 1)
    codec, buffers = encoded_update(LAYOUT, 0, {}, lanes)
    assert (codec, as_bytes(buffers)) == (RAW, b"".join(lanes))
    assert raw_update(LAYOUT, 0, RAW, as_bytes(buffers)) == b"".join(lanes)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bytes_of_something_else_are_refused(data: st.DataObject) -> None:
    whole = bytes(as_bytes(encoded_update(LAYOUT, 0, codecs("int8"), pushes("int8", 2))[1]))
    cut = data.draw(st.integers(1, len(whole) // LANES - 1))
    with pytest.raises(StoreError):
        raw_update(LAYOUT, 0, ENCODED, memoryview(whole[:cut]))
    other = lay_out(specs_of_model(torch.nn.Linear(30, 30)), 1)
    with pytest.raises(StoreError):
        raw_update(other, 0, ENCODED, memoryview(whole))
    with pytest.raises(StoreError, match="codec 9"):
        raw_update(LAYOUT, 0, 9, memoryview(whole))


class Updates:
    """Of the log: pushes to bytes, and back as RAW."""

    def to_bytes(self, update: list[bytes]) -> tuple[int, list]:
        return encoded_update(LAYOUT, 0, codecs("int8"), update)

    def from_bytes(self, codec: int, data: memoryview) -> memoryview:
        return raw_update(LAYOUT, 0, codec, data)


def append(files: MemoryFiles, number: int) -> int:
    """Log updates 1, 2, ..., in groups of different sizes; how many were acknowledged when the disk stopped."""
    acknowledged = 0
    try:
        with open_log(files, "log/0", store_id=STORE, shard=0, segment_bytes=16 * BLOCK)[0] as log:
            while acknowledged < number:
                lsns = range(acknowledged + 1, min(acknowledged + 2 + acknowledged % 3, number + 1))
                log.append([to_record(content(lsn), Updates()) for lsn in lsns])
                acknowledged = lsns[-1]
    except Crash:
        pass
    return acknowledged


def content(lsn: int) -> PushRecord:
    return PushRecord(lsn, 1, 1, 0, 1, lsn, lsn, pushes("int8", lsn))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 60))
def test_after_a_torn_tail_a_prefix_is_replayed_exactly(seed: int, stop_after: int) -> None:
    files = MemoryFiles(seed=seed, stop_after=stop_after)
    acknowledged = append(files, 8)
    files = files.after_crash()
    open_log(files, "log/0", store_id=STORE, shard=0)[0].close()
    found = [from_record(record, Updates()) for record in LogReader(files, "log/0")]
    assert acknowledged <= len(found) <= 8
    for lsn, record in enumerate(found, 1):
        assert isinstance(record, PushRecord)
        assert (record.lsn, record.update) == (lsn, b"".join(pushes("int8", lsn)))


def test_a_damaged_middle_is_refused_with_its_lsn() -> None:
    files = MemoryFiles(seed=1)
    assert append(files, 4) == 4
    files.flip(f"log/0/{1:020d}.log", BLOCK + 500)
    with pytest.raises(DamageError, match="LSN 1"):
        list(LogReader(files, "log/0"))
