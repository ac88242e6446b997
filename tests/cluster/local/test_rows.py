"""Embeddings with sparse gradients on the local engine: the bits of dense ones, by rows alone."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from gradbase.cluster.job import Request
from gradbase.cluster.local import LocalEngine
from gradbase.cluster.steward import StepReport
from gradbase.cluster.worker import BatchStream, Recipe, forward_seed
from gradbase.common.errors import StepError, UsageError
from gradbase.store.machine import parse_consistency
from gradbase.store.update import RowwiseAdagrad
from tests.cluster import recipes

ROWS, WIDTH, STEPS = 400, 6, 30
OPTIMIZERS = {"sgd": optim.SGD, "adagrad": optim.Adagrad, "adam": optim.Adam}


class Words(nn.Module):
    """The mean of what some words stand for; a table that is never used has a gradient of zeros."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=sparse, padding_idx=0)
        self.unused = nn.Embedding(9, WIDTH, sparse=sparse)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, words: torch.Tensor) -> Any:
        return self.head(self.table(words).mean(1))


def batches() -> Iterator[Any]:
    while True:
        yield torch.randint(ROWS, (8, 5)), torch.randn(8, 1)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def functional_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The table is looked up behind the back of any module that says how."""
    found = F.embedding(batch[0], model.table.weight, sparse=True)
    return F.mse_loss(model.head(found.mean(1)), batch[1])


def build(sparse: bool, optimizer: str = "adagrad", functional: bool = False) -> Recipe:
    def updates(model: nn.Module) -> optim.Optimizer:
        return OPTIMIZERS[optimizer](model.parameters(), lr=0.1)

    given = functional_loss if functional else loss
    return Recipe.build(recipes.SEED, functools.partial(Words, sparse), updates, batches, given)


def _request(sparse: bool, optimizer: str = "adagrad", consistency: str = "bsp", **given: Any) -> Request:
    level, staleness_steps = parse_consistency(consistency)
    given = {"workers": 2, "steps": STEPS, **given}
    return Request(
        functools.partial(build, sparse, optimizer), consistency=level, staleness_steps=staleness_steps, **given
    )


def _digest(request: Request, **given: Any) -> str:
    return recipes.digest(LocalEngine(request, **given).run().model)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("codec", [None, "int8,table.*=int8"])
def test_bits_are_those_of_dense_gradients(optimizer: str, codec: str | None) -> None:
    """Also where a codec leaves something of every row, so that tables are pushed whole."""
    assert _digest(_request(True, optimizer, codec=codec)) == _digest(_request(False, optimizer, codec=codec))


def test_one_worker_under_asp_gives_the_bits_of_dense_gradients() -> None:
    found = [_digest(_request(sparse, consistency="asp", workers=1, lanes=1)) for sparse in (True, False)]
    assert found[0] == found[1]


def test_workers_that_are_killed_change_nothing() -> None:
    reports: list[StepReport] = []

    def kill(report: StepReport) -> None:
        reports.append(report)
        others = [pid for pid in engine.processes() if pid != os.getpid()]
        if len(reports) % 15 == 0 and others:
            os.kill(others[0], signal.SIGKILL)

    engine = LocalEngine(_request(True, workers=3, lanes=3), on_report=kill)
    outcome = engine.run()
    assert outcome.lost >= 3
    assert recipes.digest(outcome.model) == _digest(_request(False, workers=3, lanes=3))


@pytest.mark.parametrize("logging", ["command", "physical"])
def test_a_store_of_tables_goes_on_from_its_log(tmp_path: Path, logging: Any) -> None:
    given: dict[str, Any] = {"durability": "wal", "store": tmp_path / "store", "logging": logging}
    LocalEngine(_request(True, steps=STEPS // 2, **given)).run()
    for checkpoint in (tmp_path / "store" / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)  # all of it comes from the log
    assert _digest(_request(True, resume=True, **given)) == _digest(_request(False))


def test_tables_by_row_alone() -> None:
    """By RowwiseAdagrad, whose state is one number a row."""
    model = LocalEngine(Request(_rowwise, 2, STEPS)).run().model
    assert recipes.digest(model) == recipes.digest(LocalEngine(Request(_rowwise, 1, STEPS, lanes=2)).run().model)
    plain, stream = _rowwise(), BatchStream(_rowwise().batches, _rowwise().random_state)
    for step in range(STEPS):
        for number in (2 * step, 2 * step + 1):
            torch.manual_seed(forward_seed(recipes.SEED, number))
            (loss(plain.model, stream.get(number)) / 2).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def _rowwise() -> Recipe:
    """The head is frozen: RowwiseAdagrad trains tables alone."""

    def model() -> nn.Module:
        words = Words(sparse=True)
        words.head.requires_grad_(False)
        return words

    def updates(model: nn.Module) -> optim.Optimizer:
        return RowwiseAdagrad([p for p in model.parameters() if p.requires_grad], lr=0.1)

    return Recipe.build(recipes.SEED, model, updates, batches, loss)


def test_what_rows_cannot_have_is_refused() -> None:
    with pytest.raises(UsageError, match="Adam cannot train table.weight, which is pushed by row"):
        LocalEngine(_request(True, "adam")).run()
    with pytest.raises(StepError, match="the gradient of table.weight is sparse, and it is no table of rows"):
        LocalEngine(Request(functools.partial(build, False, "sgd", functional=True), 2, 3)).run()
