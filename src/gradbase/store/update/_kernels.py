"""torch.optim's own arithmetic on a part of a tensor.

Each kernel updates `value` and its state in place from `gradient`; all are flat and of one size. `step` counts the
updates before this one. The functions called are the ones torch.optim calls itself, and they treat every element
alike, so a tensor updated part by part ends in the same bits as one updated whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from gradbase.store.update._rule import Settings

State = Mapping[str, torch.Tensor]
Kernel = Callable[[Settings, torch.Tensor, torch.Tensor, State, int], None]


def update_sgd(settings: Settings, value: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> None:
    buffer = state.get("momentum_buffer")
    # torch.optim.SGD starts from the first gradient, not from zero: it makes the buffer then, and it is copied.
    buffers = [buffer if step else None]
    sgd(
        [value],
        [gradient],
        buffers,
        foreach=_or_false(settings["foreach"]),
        fused=_or_false(settings["fused"]),
        weight_decay=settings["weight_decay"],
        momentum=settings["momentum"],
        lr=settings["lr"],
        dampening=settings["dampening"],
        nesterov=settings["nesterov"],
        maximize=settings["maximize"],
    )
    if buffer is not None and buffers[0] is not None and not step:
        buffer.copy_(buffers[0])


def update_adam(settings: Settings, value: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> None:
    beta1, beta2 = settings["betas"]
    adam(
        [value],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [state["max_exp_avg_sq"]] if settings["amsgrad"] else [],
        [torch.tensor(float(step))],
        foreach=_or_false(settings["foreach"]),
        fused=_or_false(settings["fused"]),
        decoupled_weight_decay=settings["decoupled_weight_decay"],
        has_complex=value.is_complex(),
        amsgrad=settings["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        eps=settings["eps"],
        maximize=settings["maximize"],
    )


def update_adagrad(settings: Settings, value: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> None:
    adagrad(
        [value],
        [gradient],
        [state["sum"]],
        [torch.tensor(float(step))],
        foreach=_or_false(settings["foreach"]),
        fused=_or_false(settings["fused"]),
        has_complex=value.is_complex(),
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        lr_decay=settings["lr_decay"],
        eps=settings["eps"],
        maximize=settings["maximize"],
    )


def update_directed(settings: Settings, value: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> None:
    """`gradient` is Adam's direction already; what is left of its arithmetic is the learning rate and the decay."""
    if settings["weight_decay"]:
        value.mul_(1 - settings["lr"] * settings["weight_decay"])
    value.add_(gradient, alpha=settings["lr"] if settings["maximize"] else -settings["lr"])


KERNELS: Mapping[str, Kernel] = {
    "SGD": update_sgd,
    "Adam": update_adam,
    "AdamW": update_adam,
    "Adagrad": update_adagrad,
}


def _or_false(flag: bool | None) -> bool:
    """None leaves the choice to torch, which on the CPU, where servers update, is no."""
    return bool(flag)
