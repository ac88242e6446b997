"""The systems under test: each turns a recipe into `step(batch) -> loss`, one whole training step.

eager             PyTorch as it is
checkpoint        torch.utils.checkpoint around each of the recipe's blocks, use_reentrant=False
disk              saved_tensors_hooks that write what autograd saves to files and read it back
compile-B         torch.compile with activation_memory_budget B, 0 to 1
gradbase-M        gradbase within M: "50%" of eager's peak, "400000000" bytes, or "least", the least that is feasible
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradbase.common.errors import InfeasibleError

Step = Callable[[Any], torch.Tensor]

SMALLEST_ON_DISK_BYTES = 4096  # below a page of the file system a file saves nothing


@dataclass(frozen=True)
class Job:
    """A recipe with its model and optimizer made; `batch` is one to plan with, `catalog` a file of statistics."""

    recipe: ModuleType
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Any = None
    catalog: Path | None = None


def build(system: str, job: Job) -> Step:
    """The step of `system`, such as "eager", "compile-0.5" or "gradbase-50%"."""
    name, _, setting = system.partition("-")
    recipe, model, optimizer = job.recipe, job.model, job.optimizer
    if name == "gradbase":
        return _gradbase_at_least(job) if setting == "least" else _gradbase(job, setting)
    if name == "compile":
        return _compiled(recipe, model, optimizer, float(setting))
    if name == "checkpoint":
        _recompute_blocks(recipe.blocks(model))
    elif name == "disk":
        return _on_disk(recipe, model, optimizer)
    elif name != "eager":
        raise SystemExit(f"no system is called {system!r}: expected one of those in benchmarks/systems.py")
    return _eager(recipe.loss, model, optimizer)


def _eager(loss: Callable[..., torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(batch: Any) -> torch.Tensor:
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def _gradbase(job: Job, memory: str) -> Step:
    import gradbase as gb

    return gb.compile(job.model, job.recipe.loss, job.optimizer, job.batch, memory=memory, catalog=job.catalog)


def _gradbase_at_least(job: Job) -> Step:
    try:
        return _gradbase(job, "1")
    except InfeasibleError as error:
        return _gradbase(job, str(error.least_bytes))


def _compiled(recipe: ModuleType, model: nn.Module, optimizer: torch.optim.Optimizer, budget: float) -> Step:
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = budget
    return _eager(torch.compile(recipe.loss), model, optimizer)


def _recompute_blocks(blocks: list[nn.Module]) -> None:
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def _on_disk(recipe: ModuleType, model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    folder = tempfile.TemporaryDirectory(prefix="saved-tensors-")
    resident = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    inner = _eager(recipe.loss, model, optimizer)

    def step(batch: Any) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            return inner(batch)

    def pack(tensor: torch.Tensor) -> Any:
        small = tensor.nbytes < SMALLEST_ON_DISK_BYTES
        if small or tensor.untyped_storage().data_ptr() in resident:
            return tensor
        return _Saved(tensor, Path(folder.name))

    return step


class _Saved:
    """A tensor in a file of its own, which goes when autograd lets go of it."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape
        handle, self.path = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(memoryview(_as_bytes(tensor.detach().contiguous())))

    def load(self) -> torch.Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with open(self.path, "rb") as file:
            file.readinto(memoryview(_as_bytes(tensor)))  # type: ignore[attr-defined]
        return tensor

    def __del__(self) -> None:
        os.unlink(self.path)


def _unpack(saved: torch.Tensor | _Saved) -> torch.Tensor:
    return saved.load() if isinstance(saved, _Saved) else saved


def _as_bytes(tensor: torch.Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()
