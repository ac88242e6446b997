"""One system on one recipe in a process of its own; prints one JSON line.

    python -m benchmarks.worker RECIPE SYSTEM --steps 5 [--memory]

Run by `benchmarks.run`, which starts the memory runs with `benchmarks.memory.ENVIRONMENT` and the time runs without.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from benchmarks import memory, systems
from gradbase.cli._state import parameters_sha256
from gradbase.common.errors import GradbaseError

WARM_UP_STEPS = 2  # the first makes the optimizer's state and the kernels' caches, the second settles the allocator


def main() -> None:
    parser = argparse.ArgumentParser(description="One system on one recipe; prints one JSON line.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("system")
    parser.add_argument("--steps", type=int, default=WARM_UP_STEPS + 3)
    parser.add_argument("--memory", action="store_true", help="measure the peak; times then mean nothing")
    parser.add_argument("--catalog", type=Path, help="gradbase's file of statistics (default: the user's own)")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP_STEPS and not arguments.memory:
        parser.error(f"--steps must be above {WARM_UP_STEPS}, the steps that warm up")
    with contextlib.redirect_stdout(sys.stderr):
        row = measure(arguments)
    print(json.dumps({"recipe": arguments.recipe.stem, "system": arguments.system, **row}))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, or `{"error": ...}` where gradbase refuses, so that the table can say so."""
    recipe = load(arguments.recipe)
    run = measure_memory if arguments.memory else measure_time
    try:
        return run(recipe, arguments.system, arguments.steps, arguments.catalog)
    except GradbaseError as error:
        return {"error": str(error)}


def load(path: Path) -> ModuleType:
    """The recipe in the file `path`, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def measure_time(recipe: ModuleType, system: str, steps: int, catalog: Path | None) -> dict[str, Any]:
    """Losses, the digest of what was trained, and the median time of the steps after the warm-up, in µs."""
    job, feed = prepare(recipe, catalog)
    started = time.perf_counter()
    step = systems.build(system, job)
    build_s = time.perf_counter() - started
    losses, times_us = [], []
    for _ in range(steps):
        batch = next(feed)
        started = time.perf_counter()
        value = step(batch)
        times_us.append((time.perf_counter() - started) * 1e6)
        losses.append(value.item())
    return {
        "step_time_us": statistics.median(times_us[WARM_UP_STEPS:]),
        "first_step_s": times_us[0] / 1e6,
        "build_s": build_s,
        "losses": losses,
        "parameters_sha256": parameters_sha256(job.model),
        **predictions(step),
    }


def measure_memory(recipe: ModuleType, system: str, steps: int, catalog: Path | None) -> dict[str, Any]:
    """The peak of the last step, above the process's own baseline.

    The baseline is what is resident before the first step, less the tensors that are there by then: the
    interpreter, torch, warmed kernels, the compiled code or plan. `peak_bytes` is above that: parameters, buffers,
    optimizer state, one batch, gradients, activations, workspace. `above_state_bytes` leaves out the first four.
    """
    warm_kernels(recipe)
    job, feed = prepare(recipe, catalog)
    before_build = memory.settled_bytes() - tensor_bytes(job, job.batch)
    step = systems.build(system, job)
    baseline = memory.settled_bytes() - tensor_bytes(job, job.batch)
    for _ in range(steps):
        batch = next(feed)
        memory.reset_peak()
        step(batch)
    above_state = memory.peak_bytes() - baseline - tensor_bytes(job, [job.batch, batch])
    return {
        "peak_bytes": above_state + tensor_bytes(job, batch),
        "above_state_bytes": above_state,
        "state_bytes": tensor_bytes(job, None),
        "build_bytes": baseline - before_build,
        **predictions(step),
    }


def prepare(recipe: ModuleType, catalog: Path | None) -> tuple[systems.Job, Iterator[Any]]:
    """Model, optimizer and batches, made in the order that every runner of recipes keeps."""
    torch.manual_seed(0)
    model = recipe.model()
    optimizer = recipe.optimizer(model)
    feed = iter(recipe.batches())
    first = next(feed)
    return systems.Job(recipe, model, optimizer, first, catalog), itertools.chain([first], feed)


def warm_kernels(recipe: ModuleType) -> None:
    """One eager step on a model that is thrown away: thread pools, primitive caches, lazy imports."""
    model = recipe.model()
    step = systems.build("eager", systems.Job(recipe, model, recipe.optimizer(model)))
    step(next(iter(recipe.batches())))


def tensor_bytes(job: systems.Job, batches: Any) -> int:
    """Bytes of parameters, buffers, optimizer state and `batches`; shared storages count once."""
    state = list(job.optimizer.state.values())
    leaves = tree_leaves([list(job.model.parameters()), list(job.model.buffers()), state, batches])
    storages = {leaf.untyped_storage().data_ptr(): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return sum(leaf.untyped_storage().nbytes() for leaf in storages.values())


def predictions(step: Any) -> dict[str, Any]:
    """What gradbase said beforehand; nothing for the other systems."""
    plan = getattr(step, "plan", None)
    if plan is None:
        return {}
    return {
        "budget_bytes": plan.budget_bytes,
        "eager_peak_bytes": step.eager_peak_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_time_us": plan.predicted_time_us,
        "lower_bound_time_us": plan.lower_bound_time_us,
        "search_s": plan.planning_s,
        "planning_s": step.planning_s,
    }


if __name__ == "__main__":
    main()
