"""The update in place: equal to torch.optim's, and equal to it wherever a process dies and another goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from gradbase.cluster.local._memory import LocalMemory, Map, SharedPages
from gradbase.cluster.local._slab import Slab
from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.update import rule_of

LANES, SHARDS, PAGE_BYTES, BLOCK_NUMEL = 3, 2, 256, 32


class Killed(BaseException):
    """The process is gone: nothing after this line of it ran."""


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(11, 13), nn.BatchNorm1d(13), nn.Linear(13, 7))


OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "momentum": lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda model: optim.AdamW(model.parameters(), lr=0.1),
    "adagrad": lambda model: optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5),
}


class Store:
    """A slab with a model's values, and the same model beside it in plain torch."""

    def __init__(self, optimizer: str) -> None:
        self.plain = _model()
        self.optimizer = OPTIMIZERS[optimizer](self.plain)
        rule = rule_of(self.optimizer, self.plain)
        layout = lay_out(specs_of_model(self.plain), SHARDS, page_bytes=PAGE_BYTES)
        self.where = Map(layout, rule, LANES, block_numel=BLOCK_NUMEL)
        self.slab = Slab.create(self.where.nbytes)
        self.pages = SharedPages(self.slab, self.where)
        self.pages.updater.initialize()
        for name, tensor in self.plain.state_dict().items():
            self.pages.tensor(self.where.values, name).copy_(tensor)

    def push(self, step: int) -> None:
        """Gradients of every lane, into the slab and, summed, into the plain model."""
        torch.manual_seed(step)
        for name, parameter in self.plain.named_parameters():
            gradients = [torch.randn_like(parameter) for _ in range(LANES)]
            parameter.grad = sum(gradients[1:], gradients[0]) * (1 / LANES)
            for lane, gradient in enumerate(gradients):
                self.pages.tensor(self.where.pushes(lane), name).copy_(gradient)
        for name, buffer in self.plain.named_buffers():
            for lane in range(LANES):
                self.pages.tensor(self.where.pushes(lane), name).fill_(10 * step + lane)
            buffer.fill_(10 * step)  # what lane 0 pushed
        self.optimizer.step()

    def assert_equal(self) -> None:
        for name, tensor in self.plain.state_dict().items():
            assert torch.equal(self.pages.tensor(self.where.values, name), tensor), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_are_torchs_own(optimizer: str) -> None:
    store = Store(optimizer)
    for step in range(4):
        store.push(step)
        for shard in range(SHARDS):
            store.pages.apply(step + 1, shard, range(LANES))
        store.assert_equal()


def test_frozen_pages_are_neither_changed_nor_copied() -> None:
    store = Store("momentum")
    frozen = store.plain[0].weight
    kept = frozen.detach().clone()
    moves: list[str] = []
    rule = rule_of(optim.SGD([p for p in store.plain.parameters() if p is not frozen], lr=0.1), store.plain)
    where = Map(store.where.layout, rule, LANES)
    slab = Slab.create(where.nbytes)
    pages = SharedPages(slab, where, moves.append)
    pages.tensor(where.values, "0.weight").copy_(kept)
    pages.tensor(where.pushes(0), "0.weight").fill_(1.0)
    for shard in range(SHARDS):
        pages.apply(1, shard, range(LANES))
    assert torch.equal(pages.tensor(where.values, "0.weight"), kept)
    assert moves.count("saved") == len(where.layout.pages) - len(where.layout.of_tensor("0.weight"))


@settings(max_examples=40)
@given(st.sampled_from(sorted(OPTIMIZERS)), st.lists(st.integers(1, 35), max_size=6), st.booleans())
def test_a_process_that_dies_between_any_two_moves_is_taken_over(
    optimizer: str, deaths: list[int], scribble: bool
) -> None:
    store = Store(optimizer)
    moves, pending = itertools.count(1), list(deaths)

    def crash(place: str) -> None:
        if pending and next(moves) >= pending[0]:
            pending.pop(0)
            raise Killed

    for step, shard in itertools.product(range(3), range(SHARDS)):
        if shard == 0:
            store.push(step)
        done = False
        while not done:
            moves = itertools.count(1)
            pages = SharedPages(store.slab, store.where, crash)  # another process has only the slab
            try:
                pages.apply(step + 1, shard, range(LANES))
                done = True
            except Killed:
                if scribble:
                    _tear(store, shard)
    store.assert_equal()


def _tear(store: Store, shard: int) -> None:
    """Leave the block that was being changed half written."""
    record = store.slab.words(64 * (1 + shard), 8)
    if record[2] == record[1] + 1:
        value = _blocks(store, shard)[record[1]]
        value[::2] = float("nan") if value.numel() > 1 else 7


def _blocks(store: Store, shard: int) -> list[torch.Tensor]:
    """What an update of the shard changes, in its order: every page of a parameter in blocks, one of a buffer whole."""
    blocks: list[torch.Tensor] = []
    for page in store.where.layout.of_shard(shard):
        is_buffer = store.where.layout.tensors[page.tensor].kind == "buffer"
        blocks += store.pages.page(store.where.values, page).split(page.numel if is_buffer else BLOCK_NUMEL)
    return blocks


def test_models_of_two_processes_are_the_same_memory() -> None:
    store = Store("momentum")
    one, other = _model(), _model()
    first = LocalMemory(one, SharedPages(store.slab, store.where), store.where, shared=True)
    LocalMemory(other, SharedPages(store.slab, store.where), store.where, shared=True)
    with torch.no_grad():
        next(one.parameters()).fill_(3)
    assert torch.equal(next(other.parameters()), next(one.parameters()))
    gradient = first.buffers(2)[next(one.parameters())]
    gradient.fill_(5)
    assert torch.equal(store.pages.tensor(store.where.pushes(2), "0.weight"), gradient)


def test_copies_change_only_when_they_are_fetched() -> None:
    store = Store("momentum")
    model = _model()
    memory = LocalMemory(model, SharedPages(store.slab, store.where), store.where, shared=False)
    for shard in range(SHARDS):
        memory.fetch(shard)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store.push(1)
    for shard in range(SHARDS):
        memory.apply(1, shard, range(LANES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for shard in range(SHARDS):
        memory.fetch(shard)
    assert all(torch.equal(tensor, store.plain.state_dict()[name]) for name, tensor in model.state_dict().items())
