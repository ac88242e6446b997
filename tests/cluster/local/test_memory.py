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
from gradbase.cluster.worker import tables_of
from gradbase.common.errors import UsageError
from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.update import RowwiseAdagrad, rule_of, state_dict_of

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


def _tables() -> nn.Module:
    """One of more rows than a block or a page holds, one whose every row is a block."""
    torch.manual_seed(0)
    return nn.ModuleList([nn.Embedding(50, 6, sparse=True), nn.EmbeddingBag(9, 40, sparse=True), nn.Linear(5, 3)])


def _rowwise(model: nn.Module) -> optim.Optimizer:
    """The other parameters are frozen: RowwiseAdagrad trains tables alone."""
    return RowwiseAdagrad([p for name, p in model.named_parameters() if name in tables_of(model)], lr=0.1)


TABLE_OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": lambda model: optim.SGD(model.parameters(), lr=0.1),
    "adagrad": lambda model: optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5),
    "rowwise": _rowwise,
}


class Store:
    """A slab with a model's values, and the same model beside it in plain torch."""

    def __init__(self, optimizer: str) -> None:
        self._make(OPTIMIZERS[optimizer], _model())

    def _make(self, optimizer: Callable[[nn.Module], optim.Optimizer], plain: nn.Module) -> None:
        self.plain = plain
        self.optimizer = optimizer(plain)
        rule = rule_of(self.optimizer, self.plain)
        layout = lay_out(specs_of_model(self.plain, rows=tables_of(plain)), SHARDS, page_bytes=PAGE_BYTES)
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


class TableStore(Store):
    """Of tables: every lane uses some rows, some of them more than once, or none; now and then all, or all at once."""

    def __init__(self, optimizer: str, dtype: torch.dtype = torch.float32) -> None:
        self._make(TABLE_OPTIMIZERS[optimizer], _tables().to(dtype))

    def push(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter in self.plain.named_parameters():
            if id(parameter) not in trained:
                continue
            gradients = [self._gradient(parameter, step + lane, generator) for lane in range(LANES)]
            dense = [each.to_dense() if each.is_sparse else each for each in gradients]
            parameter.grad = ((dense[0] + dense[1]) + dense[2]) * (1 / LANES)
            for lane, gradient in enumerate(gradients):
                is_none = gradient.is_sparse and not len(gradient._values())
                buffer = self.pages.buffer(lane, name)
                buffer.zero_() if is_none else buffer.copy_(gradient)
        self.optimizer.step()

    def _gradient(self, parameter: torch.Tensor, kind: int, generator: torch.Generator) -> torch.Tensor:
        if parameter.dim() == 1 or len(parameter) < 9 or kind % 7 == 6:
            return torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        count = (0, 3, len(parameter) // 4, 3 * len(parameter))[kind % 4]
        ids = torch.randint(len(parameter), (count,), generator=generator)
        # Halves, so that the order in which the same row's are summed does not matter: torch's own is not ours.
        values = (torch.randint(-8, 9, (count, parameter.shape[1]), generator=generator) / 2).to(parameter.dtype)
        return torch.sparse_coo_tensor(ids[None], values, parameter.shape, check_invariants=True)


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_rows_that_were_used_are_updated_as_if_all_were(optimizer: str) -> None:
    store, moves = TableStore(optimizer), []
    store.pages._crash = moves.append
    counts = []
    for step in range(12):
        store.push(step)
        moves.clear()
        for shard in range(SHARDS):
            store.pages.apply(step + 1, shard, range(LANES))
        counts.append(moves.count("saved"))
        store.assert_equal()
    assert min(counts) < max(counts), "an update of few rows takes fewer blocks"
    saved = state_dict_of([store.pages.updater], store.optimizer, store.plain)["state"]
    for index, state in store.optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(saved[index][key]), torch.as_tensor(state[key])) for key in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_logged_update_of_a_table_gives_the_same_bits(optimizer: str, dtype: torch.dtype) -> None:
    """Though it is of whole pages: in half precision torch rounds the end of a run of numbers in another way."""
    store, again = TableStore(optimizer, dtype), TableStore(optimizer, dtype)
    for step in range(6):
        store.push(step)
        for shard in range(SHARDS):
            pushed = b"".join(store.pages.pushed_bytes(shard, lane) for lane in range(LANES))
            again.pages.replay(shard, memoryview(pushed))
            store.pages.apply(step + 1, shard, range(LANES))
        for name in store.plain.state_dict():
            values = [each.pages.tensor(each.where.values, name) for each in (store, again)]
            assert torch.equal(*values), name


def test_rows_of_a_writer_that_died_are_gone_when_the_next_one_writes() -> None:
    """It had written some of them, and not yet said which."""
    store = TableStore("sgd")
    buffer, gradient = store.pages.buffer(1, "0.weight"), store.pages.tensor(store.where.pushes(1), "0.weight")
    buffer.copy_(_of_rows(3, 7, 3))
    assert gradient[3].eq(2).all() and gradient[7].eq(1).all() and gradient.count_nonzero() == 12
    store.pages.take_any_rows(1)
    gradient[20] = 5.0
    buffer.copy_(_of_rows(8))
    assert gradient[8].eq(1).all() and gradient.count_nonzero() == 6


def _of_rows(*rows: int) -> torch.Tensor:
    """A sparse gradient of the first table: ones for each of the rows."""
    return torch.sparse_coo_tensor(torch.tensor([rows]), torch.ones(len(rows), 6), (50, 6), check_invariants=True)


def test_a_table_whose_every_row_changes_is_refused() -> None:
    with pytest.raises(UsageError, match="(?s)Adam cannot train 0.weight.*sparse=False"):
        store = TableStore("sgd")
        rule = rule_of(optim.Adam(store.plain.parameters()), store.plain)
        where = Map(store.where.layout, rule, LANES)
        SharedPages(Slab.create(where.nbytes), where)


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
@given(
    st.sampled_from(sorted(OPTIMIZERS) + [f"{name} of tables" for name in sorted(TABLE_OPTIMIZERS)]),
    st.lists(st.integers(1, 35), max_size=6),
    st.booleans(),
)
def test_a_process_that_dies_between_any_two_moves_is_taken_over(
    optimizer: str, deaths: list[int], scribble: bool
) -> None:
    name, _, tables = optimizer.partition(" of ")
    store = TableStore(name) if tables else Store(name)
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
    if record[2] != record[1] + 1:
        return
    planned, tables = store.pages._changing_of(shard)
    rows = [block for table in tables for block in table.blocks(range(LANES))]
    if record[1] < len(planned):
        value = planned[record[1]].value
        value[::2] = float("nan") if value.numel() > 1 else 7
    else:
        block = rows[record[1] - len(planned)]
        block._owner.table[block._rows[::2]] = float("nan")
        store.pages.updater.steps[block.numbers] += 1


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
