"""Rows over several shards give what one embedding layer with the same optimizer gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import StoreError
from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.sparse import RowClient, RowTable, combine
from gradbase.store.update import RowwiseAdagrad, Updater, allocate, load_state_dict, rule_of, state_dict_of

ROWS, WIDTH = 300, 12
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.3, initial_accumulator_value=0.1),
    "rowwise": lambda p: RowwiseAdagrad(p, lr=0.3, initial_accumulator_value=0.1),
}


def store_of(module, optimizer, shard_count, page_bytes=1024):
    """Updaters and a client over a store that holds the module's table."""
    rule = rule_of(optimizer, module)
    layout = lay_out(specs_of_model(module, rows=["weight"]), shard_count, page_bytes=page_bytes)
    shards = range(shard_count) if shard_count > 1 else [None]
    updaters = [Updater(layout, rule, allocate(layout, rule, shard), shard=shard) for shard in shards]
    for updater in updaters:
        updater.initialize()
        for page in updater.pages:
            updater.assign(page.number, module.weight.detach().flatten()[page.start :][: page.numel])
    tables = {i: RowTable(updater, "weight") for i, updater in enumerate(updaters)}
    return updaters, RowClient(layout, "weight", tables)


def whole(client):
    return client.pull(torch.arange(ROWS)).rows.detach()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("shard_count", [1, 3])
def test_training_rows_is_training_an_embedding(kind, shard_count):
    """Three steps with duplicate ids, against nn.Embedding(sparse=True) with the same optimizer."""
    torch.manual_seed(0)
    module = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    optimizer = OPTIMIZERS[kind](module.parameters())
    _, client = store_of(module, optimizer, shard_count)
    for _ in range(3):
        ids, weights = torch.randint(ROWS, (7, 20)), torch.randn(7, 20, WIDTH)
        pulled = client.pull(ids)
        assert torch.allclose(pulled.lookup(), module(ids))
        (pulled.lookup() * weights).sum().backward()
        client.push(pulled.unique, pulled.gradient)
        optimizer.zero_grad()
        (module(ids) * weights).sum().backward()
        optimizer.step()
    assert torch.allclose(whole(client), module.weight.detach(), atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_without_duplicates_the_bits_are_torchs(kind):
    torch.manual_seed(0)
    module = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    optimizer = OPTIMIZERS[kind](module.parameters())
    _, client = store_of(module, optimizer, 3)
    for _ in range(3):
        ids, weights = torch.randperm(ROWS)[:90], torch.randn(90, WIDTH)
        client.push(ids, weights)
        optimizer.zero_grad()
        (module(ids) * weights).sum().backward()
        optimizer.step()
    assert torch.equal(whole(client), module.weight.detach())


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_duplicates_are_summed_in_order(ids, seed):
    values = torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(seed))
    unique, sums = combine(torch.tensor(ids, dtype=torch.int64), values)
    assert unique.tolist() == sorted(set(ids))
    for row, total in zip(unique.tolist(), sums, strict=True):
        mine = [value for i, value in zip(ids, values, strict=True) if i == row]
        expected = mine[0].clone()
        for value in mine[1:]:
            expected += value
        assert torch.equal(total, expected)


def test_only_the_rows_named_change():
    module = torch.nn.Embedding(ROWS, WIDTH)
    _, client = store_of(module, RowwiseAdagrad(module.parameters()), 3)
    before = whole(client)
    client.push(torch.tensor([5, 250, 5]), torch.ones(3, WIDTH))
    changed = (whole(client) != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [5, 250]


def test_rowwise_adagrad_is_its_formula():
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = RowwiseAdagrad([table], lr=0.5, eps=0.0)
    table.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    optimizer.step()
    root = 12.5**0.5  # of the mean square of 3 and 4
    expected = torch.tensor([[1 - 1.5 / root, 1 - 2 / root], [1, 1], [0.5, 0.5], [1, 1]])
    assert torch.allclose(table.detach(), expected)
    assert torch.allclose(optimizer.state[table]["row_sum"], torch.tensor([12.5, 0, 1, 0]))


def test_rowwise_adagrad_takes_dense_and_sparse_gradients_alike():
    torch.manual_seed(0)
    dense, sparse = (torch.nn.Embedding(20, 4, sparse=kind) for kind in (False, True))
    sparse.load_state_dict(dense.state_dict())
    ids = torch.randperm(20)[:8]
    for module in (dense, sparse):
        optimizer = RowwiseAdagrad(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (module(ids) ** 2).sum().backward()
            optimizer.step()
    assert torch.equal(dense.weight, sparse.weight)


@pytest.mark.parametrize("kind", ["adagrad", "rowwise"])
def test_the_state_of_rows_goes_into_the_users_optimizer_and_back(kind):
    torch.manual_seed(0)
    module = torch.nn.Embedding(ROWS, WIDTH)
    optimizer = OPTIMIZERS[kind](module.parameters())
    updaters, client = store_of(module, optimizer, 3)
    client.push(torch.arange(0, ROWS, 2), torch.randn(ROWS // 2, WIDTH))
    saved = state_dict_of(updaters, optimizer, module)
    optimizer.load_state_dict(saved)
    others, again = store_of(module, optimizer, 2, page_bytes=512)
    load_state_dict(others, optimizer.state_dict(), optimizer, module)
    with torch.no_grad():
        module.weight.copy_(whole(client))
    for updater in others:
        for page in updater.pages:
            updater.assign(page.number, module.weight.detach().flatten()[page.start :][: page.numel])
    ids, gradients = torch.arange(0, ROWS, 3), torch.randn(ROWS // 3, WIDTH)
    client.push(ids, gradients)
    again.push(ids, gradients)
    assert torch.equal(whole(client), whole(again))


@pytest.mark.parametrize("shard_count", [1, 3])
@pytest.mark.parametrize("bad", [-1, ROWS, 1 << 40])
def test_rows_that_do_not_exist_are_refused(shard_count, bad):
    module = torch.nn.Embedding(ROWS, WIDTH)
    updaters, client = store_of(module, torch.optim.SGD(module.parameters()), shard_count)
    with pytest.raises(StoreError, match=f"row {bad} of weight"):
        client.pull(torch.tensor([3, bad]))
    for updater in updaters:
        with pytest.raises(StoreError, match="of weight is not"):
            RowTable(updater, "weight").push(torch.tensor([bad]), torch.zeros(1, WIDTH))


def test_a_row_of_another_shard_is_refused():
    module = torch.nn.Embedding(ROWS, WIDTH)
    updaters, _ = store_of(module, torch.optim.SGD(module.parameters()), 2)
    elsewhere = next(page for page in updaters[0].layout.pages if page.shard == 1)
    row = elsewhere.start // WIDTH
    with pytest.raises(StoreError, match=f"row {row} of weight is not on shard 0"):
        RowTable(updaters[0], "weight").pull(torch.tensor([row]))


def test_gradients_of_another_shape_are_refused():
    module = torch.nn.Embedding(ROWS, WIDTH)
    updaters, _ = store_of(module, torch.optim.SGD(module.parameters()), 1)
    with pytest.raises(StoreError, match=r"gradients of shape \[2, 5\] for 2 rows"):
        RowTable(updaters[0], "weight").push(torch.tensor([1, 2]), torch.zeros(2, 5))


def test_nothing_is_a_push_too():
    module = torch.nn.Embedding(ROWS, WIDTH)
    _, client = store_of(module, torch.optim.SGD(module.parameters()), 3)
    none = torch.empty(0, dtype=torch.int64)
    client.push(none, torch.empty(0, WIDTH))
    assert client.pull(none).lookup().shape == (0, WIDTH)
