import itertools
import json
import mmap
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import StoreError
from gradbase.store.layout import (
    ALIGNMENT_BYTES,
    BLOCK_BYTES,
    ITEM_BYTES,
    PAGE_BYTES,
    Layout,
    TensorSpec,
    home_view,
    lay_out,
    order_of_use,
    page_view,
    place,
    specs_of_model,
    tensor_view,
)


@st.composite
def specs(draw):
    count = draw(st.integers(0, 12))
    found = []
    for i in range(count):
        kind = draw(st.sampled_from(["parameter", "rows", "buffer"]))
        least = 1 if kind == "rows" else 0
        shape = tuple(draw(st.lists(st.integers(least, 90), min_size=2 * least, max_size=3)))
        dtype = draw(st.sampled_from(["float32", "bfloat16", "float64", "int64", "bool"]))
        found.append(TensorSpec(f"t{i}", shape, dtype, kind, cost=draw(st.floats(0, 10))))
    return found


@given(specs(), st.integers(1, 5), st.sampled_from([64, 1000, 4096, PAGE_BYTES]))
@settings(max_examples=80, deadline=None)
def test_pages_cover_every_tensor_once_and_never_two(tensors, shard_count, page_bytes):
    layout = lay_out(tensors, shard_count, page_bytes=page_bytes)
    for i, spec in enumerate(tensors):
        pages = layout.of_tensor(spec.name)
        assert [page.tensor for page in pages] == [i] * len(pages)
        assert sum(page.numel for page in pages) == spec.numel
        for before, after in itertools.pairwise(pages):
            assert before.start + before.numel == after.start
            assert before.offset + before.nbytes == after.offset
            assert before.number + 1 == after.number
        assert all(page.nbytes == page.numel * ITEM_BYTES[spec.dtype] for page in pages)


@given(specs(), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_nothing_overlaps_in_the_slab_or_in_a_home(tensors, shard_count):
    layout = lay_out(tensors, shard_count, page_bytes=1000)
    ends_before_next(sorted((page.offset, page.nbytes) for page in layout.pages), layout.slab_nbytes)
    for shard in range(shard_count):
        pages = layout.of_shard(shard)
        ends_before_next(sorted((page.place, page.nbytes) for page in pages), layout.home_nbytes[shard])
        firsts = [page for page in pages if page == next(p for p in pages if p.tensor == page.tensor)]
        assert all(page.place % ALIGNMENT_BYTES == 0 for page in firsts)


def ends_before_next(extents, end):
    for (offset, nbytes), (following, _) in itertools.pairwise([*extents, (end, 0)]):
        assert offset + nbytes <= following


@given(specs(), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_layout_reads_back_from_its_json(tensors, shard_count):
    layout = lay_out(tensors, shard_count, page_bytes=1000)
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.digest == layout.digest


def test_pages_are_about_a_mebibyte_and_start_on_cache_lines():
    layout = lay_out([TensorSpec("bias", (7,)), TensorSpec("weight", (1000, 1000))], 3)
    pages = layout.of_tensor("weight")
    assert [page.nbytes for page in pages] == [PAGE_BYTES] * 3 + [4_000_000 - 3 * PAGE_BYTES]
    assert pages[0].offset % BLOCK_BYTES == 0
    assert all(page.offset % ALIGNMENT_BYTES == 0 for page in layout.pages)


def test_rows_are_never_cut():
    spec = TensorSpec("table", (100_000, 48), kind="rows")
    layout = lay_out([spec], 4)
    assert all(page.start % 48 == 0 and page.numel % 48 == 0 for page in layout.pages)
    page, row = layout.page_of_row("table", 77_777)
    assert page.start + row * 48 == 77_777 * 48


def test_the_rows_of_a_shard_are_one_view():
    specs = [TensorSpec("a", (5,)), TensorSpec("table", (90, 7), kind="rows"), TensorSpec("b", (900,))]
    layout = lay_out(specs, 3, page_bytes=500)
    table = torch.randn(90, 7)
    homes = [torch.zeros(n, dtype=torch.uint8) for n in layout.home_nbytes]
    for page in layout.of_tensor("table"):
        page_view(layout, homes[page.shard], page, home=True).copy_(table.flatten()[page.start :][: page.numel])
    for page in layout.of_tensor("table"):
        mine = home_view(layout, homes[page.shard], "table", page.shard)
        first, rows = layout.first_row(page, home=True), page.numel // 7
        assert torch.equal(mine[first : first + rows], table[layout.first_row(page) :][:rows])


def test_views_of_a_buffer_are_storages_of_their_own():
    layout = lay_out([TensorSpec("a", (30,)), TensorSpec("b", (40,)), TensorSpec("none", (0, 3))], 1)
    memory = mmap.mmap(-1, layout.slab_nbytes)
    a, b = (tensor_view(layout, memory, name) for name in "ab")
    a.fill_(1.0)
    assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()
    assert b.eq(0).all() and tensor_view(layout, memory, "none").shape == (0, 3)
    assert tensor_view(layout, torch.frombuffer(memory, dtype=torch.uint8), "a").eq(1).all()


def test_rows_wider_than_a_page_are_a_page_each():
    layout = lay_out([TensorSpec("table", (3, 333_333), kind="rows")], 1)
    assert [page.numel for page in layout.pages] == [333_333] * 3


def heaviest(weights, shards, shard_count):
    return max(sum(w for w, s in zip(weights, shards, strict=True) if s == shard) for shard in range(shard_count))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_placement_keeps_grahams_bound_against_brute_force(weights, shard_count):
    every = itertools.product(range(shard_count), repeat=len(weights))
    best = min(heaviest(weights, shards, shard_count) for shards in every)
    ours = heaviest(weights, place(weights, shard_count), shard_count)
    assert ours <= sum(weights) / shard_count + max(weights)
    assert ours <= (4 / 3 - 1 / (3 * shard_count)) * best + 1e-9


def test_load_counts_the_update_not_only_the_bytes():
    """Two tensors of the same size, one of them expensive to update: its pages are spread over both shards."""
    tensors = [TensorSpec("cheap", (1 << 20,), cost=0.0), TensorSpec("dear", (1 << 20,), cost=9.0)]
    layout = lay_out(tensors, 2)
    assert layout.imbalance < 1.01
    assert {page.shard for page in layout.of_tensor("dear")} == {0, 1}


def test_the_bound_of_imbalance_holds():
    dice = random.Random(3)
    for _ in range(20):
        tensors = [TensorSpec(f"t{i}", (dice.randint(1, 900_000),), cost=dice.random() * 5) for i in range(9)]
        layout = lay_out(tensors, 4)
        largest = max(page.nbytes * (1 + tensors[page.tensor].cost) for page in layout.pages)
        assert layout.imbalance <= 1 + 3 * largest / sum(layout.loads)


def test_the_layout_is_the_same_in_another_process():
    import subprocess
    import sys

    code = (
        "from gradbase.store.layout import *\n"
        "print(lay_out([TensorSpec(f't{i}', (i * 999 % 7777, 101)) for i in range(40)], 5).digest)"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", **PATHS}, {"PYTHONHASHSEED": "2", **PATHS})
    }
    assert len(digests) == 1


PATHS = {"PYTHONPATH": ":".join(p for p in __import__("sys").path if p)}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(8, 30)
        self.first = torch.nn.Embedding(30, 8)
        self.conv = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.norm = torch.nn.BatchNorm1d(8)
        self.last.weight = self.first.weight
        self.register_buffer("scratch", torch.zeros(4), persistent=False)

    def forward(self, ids):
        return self.last(self.norm(self.first(ids)))


def test_a_model_is_read_with_ties_buffers_and_order():
    model = Net()
    order = order_of_use(model, lambda: model(torch.arange(5)))
    assert order == ["last.weight", "norm.weight", "norm.bias", "last.bias"]
    found = {spec.name: spec for spec in specs_of_model(model, rows=["first.weight"], order=order)}
    assert list(found)[:4] == order
    assert found["last.weight"].aliases == ("first.weight",)
    assert found["last.weight"].kind == "rows"
    assert found["norm.num_batches_tracked"] == TensorSpec("norm.num_batches_tracked", (), "int64", "buffer")
    assert "scratch" not in found


def test_views_have_the_models_shapes_and_strides():
    model = Net()
    layout = lay_out(specs_of_model(model), 2, page_bytes=256)
    slab = torch.zeros(layout.slab_nbytes, dtype=torch.uint8)
    for name, tensor in model.state_dict().items():
        view = tensor_view(layout, slab, name)
        assert (view.shape, view.stride(), view.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        view.copy_(tensor)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor_view(layout, slab, name), tensor)
    whole = tensor_view(layout, slab, "first.weight").flatten()
    assert torch.equal(torch.cat([page_view(layout, slab, p) for p in layout.of_tensor("last.weight")]), whole)


def test_pages_are_views_of_a_home_too():
    layout = lay_out([TensorSpec("a", (1000,)), TensorSpec("b", (999,))], 2, page_bytes=512)
    homes = [torch.zeros(n, dtype=torch.uint8) for n in layout.home_nbytes]
    for page in layout.pages:
        page_view(layout, homes[page.shard], page, home=True).fill_(page.number)
    for page in layout.pages:
        assert page_view(layout, homes[page.shard], page, home=True).eq(page.number).all()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([TensorSpec("a", (1,)), TensorSpec("a", (1,))], "two tensors are called 'a'"),
        ([TensorSpec("a", (1,), "float8")], "dtype float8"),
        ([TensorSpec("a", (9,), kind="rows")], "cannot be of kind 'rows'"),
        ([TensorSpec("a", (-1,))], "shape"),
    ],
)
def test_impossible_tensors_are_refused(tensors, words):
    with pytest.raises(StoreError, match=words):
        lay_out(tensors, 2)


@pytest.mark.parametrize(
    "damage", [{"shards": [0]}, {"shards": [7] * 4}, {"tensors": [{"name": 1}]}, {"page_bytes": "x"}]
)
def test_damaged_json_is_refused(damage):
    data = lay_out([TensorSpec("a", (1000,))], 2, page_bytes=1000).to_json()
    with pytest.raises(StoreError, match="no layout"):
        Layout.from_json({**data, **damage})


def test_unknown_names_are_refused_with_those_there_are():
    layout = lay_out([TensorSpec("a", (3,))], 1)
    with pytest.raises(StoreError, match="no tensor 'b'.*\n.*it has a"):
        layout.of_tensor("b")
    with pytest.raises(StoreError, match="no parameter is called 'nope'"):
        specs_of_model(Net(), rows=["nope"])
