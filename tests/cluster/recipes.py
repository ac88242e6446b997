"""Recipes that every engine's tests train, and the plain loop that they must agree with."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gradbase.cluster.worker import BatchStream, Recipe, forward_seed
from gradbase.store.codec import Compressor, Direction, decode, parse_codec

WIDTH, ROWS = 12, 8
SEED = 7


def model() -> nn.Module:
    """Dropout needs the random state, batch norm has buffers, the frozen layer has no gradient."""
    layers = nn.Sequential(
        nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4), nn.Linear(4, 1)
    )
    layers[4].requires_grad_(False)
    return layers


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield torch.randn(ROWS, WIDTH), torch.randn(ROWS, 1)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    rows, targets = batch
    return F.mse_loss(model(rows), targets)


def slow_loss(model: nn.Module, batch: Any, pause_s: float) -> torch.Tensor:
    time.sleep(pause_s)
    return loss(model, batch)


def failing_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    raise ValueError("this loss cannot be had")


def build(pause_s: float = 0.0, count: int | None = None, fails: bool = False) -> Recipe:
    """The recipe; `count` batches of a list, or endless ones from a generator."""
    wanted = failing_loss if fails else functools.partial(slow_loss, pause_s=pause_s) if pause_s else loss
    stream = batches if count is None else functools.partial(_first, count)
    return Recipe.build(SEED, model, optimizer, stream, wanted)


def _first(count: int) -> list[Any]:
    stream = batches()
    return [next(stream) for _ in range(count)]


def plain(lanes: int, steps: int, codec: str = "none", forgets: Container[int] = ()) -> str:
    """The digest after `steps` updates in one process, each from `lanes` micro-batches summed in their order.

    codec: of every gradient, with error feedback lane by lane, which is forgotten after so many updates.
    """
    recipe, kept = build(), dict[Any, Compressor]()
    stream = BatchStream(recipe.batches, recipe.random_state)
    parameters = [p for p in recipe.model.parameters() if p.requires_grad]
    for step in range(steps):
        if step in forgets:
            kept.clear()
        sums: list[torch.Tensor] = []
        before = {name: buffer.clone() for name, buffer in recipe.model.named_buffers()}
        for lane in range(lanes):
            for name, buffer in recipe.model.named_buffers():
                buffer.copy_(before[name])
            torch.manual_seed(forward_seed(SEED, step * lanes + lane))
            exact = torch.autograd.grad(loss(recipe.model, stream.get(step * lanes + lane)), parameters)
            gradients = [
                squeezed(kept.setdefault((lane, n), compressor(codec, lanes)), step, gradient)
                for n, gradient in enumerate(exact)
            ]
            sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
            if lane == 0:
                pushed = {name: buffer.clone() for name, buffer in recipe.model.named_buffers()}
        for name, buffer in recipe.model.named_buffers():
            buffer.copy_(pushed[name])
        for parameter, gradient in zip(parameters, sums, strict=True):
            parameter.grad = gradient * (1 / lanes)
        if parse_codec(codec).directs:
            go(recipe.optimizer)
        else:
            recipe.optimizer.step()
    return digest(recipe.model)


def compressor(codec: str, lanes: int) -> Compressor:
    """Of one tensor of one lane, page 0."""
    settings = build().optimizer.param_groups[0]
    chosen = parse_codec(codec)
    direction = Direction(settings["betas"], settings["eps"], lanes) if chosen.directs else None
    return Compressor({0: replace(chosen, direction=direction)})


def squeezed(kept: Compressor, step: int, gradient: torch.Tensor) -> torch.Tensor:
    """What arrives of a gradient."""
    kept.step = step
    return decode(kept.encode(0, gradient.flatten()), gradient.numel()).view(gradient.shape)


@torch.no_grad()
def go(optimizer: torch.optim.Optimizer) -> None:
    """What AdamW does with directions."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(parameter.grad, alpha=-group["lr"])


def digest(model: nn.Module) -> str:
    state = model.state_dict()
    return hashlib.sha256(b"".join(n.encode() + state[n].numpy().tobytes() for n in sorted(state))).hexdigest()
