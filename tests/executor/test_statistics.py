"""ANALYZE: measured once, kept, and used by the next planning."""

from __future__ import annotations

import itertools
import sqlite3
import time
from pathlib import Path

import pytest
import torch

import gradbase as gb
from gradbase.capture import capture_step, eager_peak_bytes
from gradbase.catalog import Catalog
from gradbase.compiled import explain
from gradbase.executor import _measure
from tests.zoo import ZOO


def test_the_second_planning_measures_nothing(tmp_path: Path) -> None:
    case = ZOO["unet"]
    stages: list[list[str]] = []
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        for _ in range(2):
            torch.manual_seed(0)
            model = case.model()
            told: list[str] = []
            with gb.compile(
                model,
                case.loss,
                case.optimizer(model),
                next(iter(case.batches())),
                catalog=catalog,
                spill=tmp_path,
                on_progress=lambda stage, done, total, told=told: told.append(stage),
            ) as step:
                assert dict(step.plan.estimates) == {"measured": len(step.logical.operators)}
            stages.append(told)
        _, rows = catalog.query("SELECT count(*), min(count), min(time_us) FROM statistics")
    assert "measuring operators" in stages[0]
    assert not any(stage.startswith("measuring") for stage in stages[1])
    assert rows[0][0] > 10 and rows[0][1] >= 3 and rows[0][2] > 0


def test_steps_correct_statistics_that_are_far_off(tmp_path: Path) -> None:
    """As after measuring on a machine that others kept busy."""
    case = ZOO["unet"]
    batch = next(iter(case.batches()))

    def compiled() -> gb.Step:
        model = case.model()
        return gb.compile(model, case.loss, case.optimizer(model), batch, catalog=catalog, spill=tmp_path)

    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        compiled().close()
        with sqlite3.connect(catalog.path) as connection:
            connection.execute("UPDATE statistics SET time_us = time_us * 100")
        with compiled() as step:
            busy_us = step.plan.predicted_time_us
            for _ in range(2):
                step(batch)
            assert step.correct_statistics() == 0, "one of two steps warmed up"
            step(batch)
            assert step.correct_statistics() > 0
        with compiled() as step:
            assert step.plan.predicted_time_us < busy_us / 5


def test_explaining_a_meta_model_allocates_none_of_it(tmp_path: Path) -> None:
    """A model of 17 GiB of weights, on a device that is not here."""
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(16384, 16384) for _ in range(16)))
        batch = torch.empty(64, 16384)
    optimizer = torch.optim.AdamW(model.parameters())
    explained = explain(
        model,
        lambda m, b: m(b).square().mean(),
        optimizer,
        batch,
        "70%",
        device="h100",
        catalog=tmp_path / "catalog.sqlite",
    )
    assert explained.hypothetical
    assert explained.physical.predicted_peak_bytes <= 0.7 * explained.eager_peak_bytes
    assert explained.eager_peak_bytes > 4 * 16 * 16384**2 * 4
    assert "estimates" in explained.render("text")
    assert not optimizer.state


def test_eagers_predicted_peak_is_what_its_allocator_counts() -> None:
    """Forward, loss and backward on the CPU, counted by torch's profiler, above parameters."""
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(256, 256), torch.nn.GELU())]
    model = torch.nn.Sequential(*layers)
    batch = torch.randn(2048, 256)

    def loss(m: torch.nn.Module, b: torch.Tensor) -> torch.Tensor:
        return m(b).square().mean()

    predicted = eager_peak_bytes(model, loss, batch, lambda *_: (0, 0))
    loss(model, batch).backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(model, batch).backward()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert abs(predicted - peak) <= 0.01 * peak


def test_operators_carry_modules_and_lines_forward_and_backward() -> None:
    case = ZOO["unet"]
    model = case.model()
    program = capture_step(model, case.loss, case.optimizer(model), next(iter(case.batches()))).program()
    names = {name for name, _ in model.named_modules()}
    convolutions = [op for op in program.plan.operators if "convolution" in op.target]
    assert {op.phase for op in convolutions} == {"forward", "backward"}
    forward = [op.module for op in convolutions if op.phase == "forward"]
    backward = [op.module for op in convolutions if op.phase == "backward"]
    assert set(forward) == set(backward)  # twice there: for the weight, then for the image
    assert all(module in names and module for module in forward)
    assert all(op.source.startswith("zoo.py:") for op in convolutions)


def test_runs_that_other_processes_disturbed_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def run() -> None:
        nonlocal taken
        disturbed = next(turns)
        taken += disturbed
        time.sleep(0.03 if disturbed else 0.005)

    monkeypatch.setattr(_measure, "_taken_cores", lambda: taken)
    turns = itertools.cycle([True, False])
    assert max(_measure._timed(run, torch.device("cpu"))) < 30_000.0
    turns = itertools.repeat(True)  # where nothing else can be had, these are what there is
    assert min(_measure._timed(run, torch.device("cpu"))) >= 30_000.0
