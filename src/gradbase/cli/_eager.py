"""A recipe in eager PyTorch, in a process of its own; prints one JSON line.

    python -m gradbase.cli._eager RECIPE.py --steps 5 --seed 0 [--memory]

The loop is the one a user would write. With --memory the peak is measured and times mean nothing; the caller then
sets the C library to give large allocations back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from gradbase.cli._console import Console
from gradbase.cli._state import parameters_sha256
from gradbase.cli.recipe import Job, load_recipe, start
from gradbase.common.errors import GradbaseError, UsageError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM back to the resident set of now


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    with Console() as console:
        try:
            recipe = load_recipe(arguments.recipe)
            with recipe.blamed("a step"):
                job = start(recipe, arguments.seed)
                measure = measure_memory if arguments.memory else measure_time
                console.json(measure(job, arguments.steps))
        except GradbaseError as error:
            console.fail(" ".join(str(error).split()))
            return 2
        except KeyboardInterrupt:
            return 130
    return 0


def measure_time(job: Job, steps: int) -> dict[str, Any]:
    """Losses (float.hex, so that no bit is lost), the median time of a step in µs, and the parameters' digest."""
    losses, times_us = [], []
    job.first = None
    batches = islice(job.batches, steps)
    for number, batch in enumerate(batches, start=1):
        began = time.perf_counter()
        loss = eager_step(job, batch, number).item()
        times_us.append((time.perf_counter() - began) * 1e6)
        losses.append(float(loss).hex())
    return {
        "losses": losses,
        "median_step_time_us": median(times_us),
        "parameters_sha256": parameters_sha256(job.model),
    }


def measure_memory(job: Job, steps: int) -> dict[str, Any]:
    """The peak of a step above the process's own baseline, in bytes.

    The baseline is what is resident after the first updates, less the tensors that are there by then: the
    interpreter, torch, warmed kernels. So the peak counts parameters, buffers, optimizer state, batch, gradients,
    activations and kernels' workspace. Recipes whose batches end too soon repeat their last.
    """
    job.first = None
    batches = _repeating_the_last(job.batches)
    peak = baseline = 0
    for number, batch in enumerate(islice(batches, steps * job.recipe.accumulate), start=1):
        _reset_peak()
        eager_step(job, batch, number)
        if number <= job.recipe.accumulate:  # warming up: caches, optimizer state
            baseline = _settled_bytes() - tensor_bytes(job, batch)
        else:
            peak = max(peak, _field_bytes("VmHWM") - _field_bytes("RssFile") - baseline)
    return {"peak_bytes": peak, "state_bytes": tensor_bytes(job, None)}


def eager_step(job: Job, batch: Any, number: int) -> torch.Tensor:
    """Step `number`, from 1: backward, and where gradients of enough batches are summed clip, update, schedule."""
    loss = job.recipe.loss(job.model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    if job.updated(number):
        if job.recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(job.model.parameters(), job.recipe.clip_grad_norm)
        job.optimizer.step()
        job.optimizer.zero_grad()
        job.schedule(loss.item())
    return loss.detach()


def tensor_bytes(job: Job, batch: Any) -> int:
    """Bytes of parameters, gradients, buffers, optimizer state and the batch; shared storages count once."""
    parameters = list(job.model.parameters())
    gradients = [p.grad for p in parameters]
    leaves = tree_leaves([parameters, gradients, list(job.model.buffers()), list(job.optimizer.state.values()), batch])
    storages = {leaf.untyped_storage().data_ptr(): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return sum(leaf.untyped_storage().nbytes() for leaf in storages.values())


def _repeating_the_last(batches: Iterator[Any]) -> Iterator[Any]:
    batch = None
    for batch in batches:
        yield batch
    while True:
        yield batch


def _settled_bytes() -> int:
    """Resident bytes, files aside, once garbage is collected and the heap's free end given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _field_bytes("VmRSS") - _field_bytes("RssFile")


def _reset_peak() -> None:
    if not _CLEAR_REFS.exists():
        raise UsageError("memory is measured on Linux only", "leave --compare-eager out")
    _CLEAR_REFS.write_text(_RESET_PEAK)


def _field_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise UsageError(f"{_STATUS} has no {name}", "memory is measured on Linux only")


if __name__ == "__main__":
    sys.exit(main())
