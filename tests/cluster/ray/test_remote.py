"""Pages over the wire, both ends in this process: all of them, in messages that a connection takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn, optim

from gradbase.cluster.codecs import parse_codecs
from gradbase.cluster.local import Map, SharedPages, Slab
from gradbase.cluster.ray import _outbox, _remote
from gradbase.cluster.ray._remote import PageServer, RemoteMemory
from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.update import rule_of
from gradbase.store.wire import Address, Limits, Listener, connect, new_token

PAGE_BYTES, LANES, SHARDS = 256, 2, 2


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(17, 19), nn.BatchNorm1d(19), nn.Linear(19, 23))


class Host:
    """What the caller has: a slab with a model's values."""

    def __init__(self, codec: str) -> None:
        self.model = make()
        rule = rule_of(optim.AdamW(self.model.parameters(), lr=0.1), self.model)
        layout = lay_out(specs_of_model(self.model), SHARDS, page_bytes=PAGE_BYTES)
        chosen = parse_codecs(f"none,*.weight={codec}")
        rule = chosen.directing(layout, rule)
        codecs = chosen.of_pages(layout, rule, LANES)
        self.map = Map(layout, rule, LANES, codecs, residuals=True)
        self.pages = SharedPages(Slab.create(self.map.nbytes), self.map)
        for name, tensor in self.model.state_dict().items():
            self.pages.tensor(self.map.values, name).copy_(tensor)

    def shard_nbytes(self) -> int:
        return min(sum(page.nbytes for page in self.map.layout.of_shard(shard)) for shard in range(SHARDS))


@pytest.fixture(params=["int8", "topk:0.1"])
def host(request: pytest.FixtureRequest) -> Host:
    """A codec of gradients, and one of directions, of which moments are kept as well."""
    return Host(request.param)


@pytest.fixture
def memories(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RemoteMemory, RemoteMemory, nn.Module]]:
    """Two servants and the second's model, over connections that take less in a message than a shard has."""
    monkeypatch.setattr(_remote, "_MESSAGE_BYTES", 2 * PAGE_BYTES)
    monkeypatch.setattr(_outbox, "_PAGES", 2)
    limits, token = Limits(bodies_max=5 * PAGE_BYTES), new_token()
    assert host.shard_nbytes() > limits.bodies_max
    models = [zeros(), zeros()]
    with contextlib.ExitStack() as closing:
        server = PageServer(host.pages, host.map)
        listener = closing.enter_context(Listener(Address("127.0.0.1"), token, server.serve, limits))
        made = []
        for number, model in enumerate(models):
            connection = connect(listener.address, token, limits)
            made.append(RemoteMemory(model, host.map, connection, number, shared=True))
            closing.callback(made[-1].close)
        yield made[0], made[1], models[1]


def zeros() -> nn.Module:
    model = make()
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


def push(memory: RemoteMemory, lane: int) -> None:
    torch.manual_seed(lane)
    for parameter, gradient in memory.buffers(lane).items():
        gradient.copy_(torch.randn_like(gradient))
        memory.complete(lane, parameter)
    memory.after(lane)


def test_values_larger_than_a_message(host: Host, memories: tuple[RemoteMemory, RemoteMemory, nn.Module]) -> None:
    _, memory, model = memories
    memory.before(0, 0)
    expected = host.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_what_a_codec_left_out_goes_from_one_servant_to_the_next(
    host: Host, memories: tuple[RemoteMemory, RemoteMemory, nn.Module]
) -> None:
    first, second, _ = memories
    assert sum(4 * page.numel for page in host.map.layout.pages if page.number in host.map.codecs) > 5 * PAGE_BYTES
    lane = 1
    first.before(lane, lane)
    push(first, lane)
    first.keep(lane)
    assert residuals(host, lane).keys() == host.map.codecs.keys()
    assert all(residual.any() for residual in residuals(host, lane).values())
    # Both push the same gradients with the same left out before: so the same is left out afterwards.
    second.before(lane, lane)
    left = []
    for memory in (first, second):
        push(memory, lane)
        memory.keep(lane)
        left.append(residuals(host, lane))
    assert all(torch.equal(left[0][number], left[1][number]) for number in host.map.codecs)


def residuals(host: Host, lane: int) -> dict[int, torch.Tensor]:
    return {number: residual.clone() for number, residual in host.pages.residuals(lane).items()}


def test_a_table_that_comes_whole_is_updated_whole() -> None:
    """Though a worker on the caller's host had pushed some of its rows to the same lane before."""
    torch.manual_seed(0)
    model, arriving = nn.Embedding(30, 4, sparse=True), nn.Embedding(30, 4, sparse=True)
    rule = rule_of(optim.SGD(model.parameters(), lr=1.0), model)
    where = Map(lay_out(specs_of_model(model, rows=["weight"]), 1), rule, 1)
    pages = SharedPages(Slab.create(where.nbytes), where)
    row = torch.sparse_coo_tensor(torch.tensor([[7]]), torch.ones(1, 4), (30, 4), check_invariants=True)
    pages.buffer(0, "weight").copy_(row)
    pages.apply(1, 0, [0])
    expected = -row.to_dense()
    assert torch.equal(pages.tensor(where.values, "weight"), expected)
    token = new_token()
    with Listener(Address("127.0.0.1"), token, PageServer(pages, where).serve) as listener:
        memory = RemoteMemory(arriving, where, connect(listener.address, token), 0, shared=True)
        memory.before(0, 0)
        push(memory, 0)
        memory.close()
    pages.apply(2, 0, [0])
    torch.manual_seed(0)
    assert torch.equal(pages.tensor(where.values, "weight"), expected - torch.randn(30, 4))
