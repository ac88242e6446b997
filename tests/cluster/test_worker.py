"""The stream of batches, and gradients that depend on a number alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradbase.cluster.channel import MESSAGE_BYTES_MAX, Channel
from gradbase.cluster.operations import Operations, Pushed, Reading, ShardPages
from gradbase.cluster.worker import BatchStream, Learner, StreamEnded, forward_seed, samples_of
from gradbase.common.errors import GradbaseError, StoreError, UsageError
from tests.cluster import recipes


def _stream(count: int, window: int) -> BatchStream:
    def batches() -> Iterator[torch.Tensor]:
        for _ in range(count):
            yield torch.randn(2)

    torch.manual_seed(3)
    return BatchStream(batches, torch.get_rng_state(), window)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 11), max_size=12), st.integers(1, 4))
def test_batches_are_the_same_in_any_order_of_asking(numbers: list[int], window: int) -> None:
    plain = torch.Generator().manual_seed(3)
    expected = [torch.randn(2, generator=plain) for _ in range(12)]
    stream = _stream(12, window)
    torch.manual_seed(99)
    for number in numbers:
        torch.rand(3)  # somebody else's draws, before and between
        assert torch.equal(stream.get(number), expected[number])
    torch.manual_seed(99)
    undisturbed = [torch.rand(3) for _ in range(len(numbers) + 1)][-1]
    torch.manual_seed(99)
    other = _stream(12, window)
    torch.manual_seed(99)
    for number in numbers:
        torch.rand(3)
        other.get(number)
    assert torch.equal(torch.rand(3), undisturbed), "drawing batches leaves the caller's random state alone"


def test_a_list_is_looked_up_and_its_end_is_told_with_its_length() -> None:
    looked_up = BatchStream(lambda: [1, 2, 3], torch.get_rng_state())
    assert looked_up.length == 3 and looked_up.get(2) == 3 and looked_up.get(0) == 1
    for stream in (looked_up, _stream(3, 1)):
        with pytest.raises(StreamEnded) as end:
            stream.get(3)
        assert end.value.length == 3


def test_a_gradient_does_not_depend_on_what_was_computed_before() -> None:
    recipe, other = recipes.build(), recipes.build()
    found = []
    for each, numbers in ((recipe, [4]), (other, [0, 2, 4])):
        learner = Learner(each, BatchStream(each.batches, each.random_state))
        state = {name: buffer.clone() for name, buffer in each.model.named_buffers()}
        buffers = {p: torch.full_like(p, 7) for p in each.model.parameters()}
        for number in numbers:
            for name, buffer in each.model.named_buffers():
                buffer.copy_(state[name])
            loss = learner.gradient(number, learner.batch(number), buffers)
        found.append((loss, [buffer for p, buffer in buffers.items() if p.requires_grad]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert forward_seed(0, 1) != forward_seed(1, 0)


def test_what_the_loss_does_not_reach_has_a_gradient_of_zeros() -> None:
    recipe = recipes.build()
    recipe.loss = lambda model, batch: model[0].weight.sum()
    learner = Learner(recipe, BatchStream(recipe.batches, recipe.random_state))
    buffers = {p: torch.full_like(p, 7) for p in recipe.model.parameters()}
    learner.gradient(0, None, buffers)
    assert buffers[recipe.model[0].weight].eq(1).all() and buffers[recipe.model[0].bias].eq(0).all()


class _Broken(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.sum()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise ValueError("no gradient today")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, batch: 3.0, "loss returned float, expected a scalar tensor"),
        (lambda model, batch: model[0].weight[0], r"loss returned \(12,\), expected a scalar tensor"),
        (lambda model, batch: model[0].weight.sum().detach(), "the loss depends on no parameter"),
        (lambda model, batch: _Broken.apply(model[0].weight), "backward pass failed: ValueError: no gradient today"),
    ],
)
def test_a_loss_without_a_gradient_is_told(loss: Any, words: str) -> None:
    recipe = recipes.build()
    recipe.loss = loss
    learner = Learner(recipe, BatchStream(recipe.batches, recipe.random_state))
    with pytest.raises(GradbaseError, match=words):
        learner.gradient(0, None, {p: torch.empty_like(p) for p in recipe.model.parameters()})


@pytest.mark.parametrize("memory", [None, "50MB"])
def test_a_loss_that_changes_parameters_is_refused(memory: str | None) -> None:
    """As max_norm of an embedding does: under bsp they are everybody's, and no log would have it."""
    recipe = recipes.build()
    table = recipe.model.table = nn.Embedding(4, 1, max_norm=0.1)
    recipe.loss = lambda model, batch: table(torch.tensor([0, 3])).sum()
    learner = Learner(recipe, BatchStream(recipe.batches, recipe.random_state), memory)
    with pytest.raises(UsageError, match="the loss changes table.weight while others read it"):
        learner.gradient(0, None, {p: torch.empty_like(p) for p in recipe.model.parameters()})


def test_samples_are_the_first_dimension_of_the_first_tensor() -> None:
    assert samples_of({"x": torch.zeros(5, 2), "n": torch.tensor(1)}) == 5
    assert samples_of("no tensor") == 1


def test_messages_are_whole_and_bounded() -> None:
    ours, theirs = Channel.pair()
    for number in range(3):
        ours.send("computed", number, 0.1 + number)
    assert theirs.ready() == [["computed", number, 0.1 + number] for number in range(3)]
    ours._socket.sendall((MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"))
    with pytest.raises(StoreError, match="at most"):
        theirs.receive()
    ours.close()
    with pytest.raises(EOFError):
        theirs.ready()


def test_a_read_is_done_before_the_updates_behind_it() -> None:
    operations = Operations(1, copies=True)
    pages = ShardPages(operations, 0, lambda shard, data: None)
    pages.apply(pages.reduce([(Pushed(1, 0),)]))
    first, second = pages.read(None), pages.read(None)
    pages.apply(pages.reduce([(Pushed(0, 2),)]))
    assert isinstance(first, Reading) and isinstance(second, Reading)
    queue = operations.queues[0]
    (update,) = queue.startable()
    assert update.kind == "apply" and update.lanes == (1,) and operations.lanes == {0, 1}
    update.started = update.done = True
    assert queue.startable() == [first.after, second.after], "readers do not wait for each other"
    for reading in (first, second):
        assert reading.after is not None
        reading.after.started = True
        assert not any(each.kind == "apply" for each in queue.startable())
        reading.after.done = True
    (last,) = queue.startable()
    assert last.lanes == (0,) and last.worker == 2


def test_a_batch_that_the_stream_did_not_have_changes_nothing() -> None:
    operations = Operations(1, copies=True)
    pages = ShardPages(operations, 0, lambda shard, data: None)
    pages.apply(pages.reduce([(Pushed(None, 0),)]))
    pages.apply(pages.reduce([(None,)]))
    assert operations.idle
