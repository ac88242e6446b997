"""The room's front door: from the user's objects to a `Program`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from gradbase.capture._optimizer import UpdateShape, is_separable, update_shape
from gradbase.capture._program import Program, build_program
from gradbase.capture._trace import Loss, Trace, trace_step
from gradbase.capture._updates import Tail
from gradbase.common.errors import UsageError

_WITH_CLOSURE = (optim.LBFGS,)


@dataclass(frozen=True)
class Captured:
    """A traced step, from which programs with different tails are built."""

    trace: Trace
    optimizer: str
    shapes: dict[str, UpdateShape]
    separable: bool
    unowned: tuple[str, ...] = ()

    def program(self, *, clip: bool = False, accumulate: bool = False, update: bool = True) -> Program:
        """The logical plan with its tail: clipped or not, accumulated or not, updating or not."""
        if clip and self.unowned:
            raise UsageError(
                f"{self.unowned[0]} gets a gradient and is not the optimizer's: does it count for the norm?",
                "freeze it (requires_grad_(False)) or give it to the optimizer; clipping is over what is updated",
            )
        tail = Tail(self.optimizer, self.shapes, self.separable, clip, accumulate, update)
        return build_program(self.trace, tail)


def capture_step(model: nn.Module, loss: Loss, optimizer: optim.Optimizer, batch: Any) -> Captured:
    """Trace forward, loss and backward, and learn what the optimizer keeps and does for each parameter.

    Runs no kernel and leaves parameters, buffers, optimizer state and random generators as they were.
    """
    _refuse_unplannable(model)
    _refuse_hooks(model, optimizer)
    trace = trace_step(model, loss, batch)
    parameters = dict(model.named_parameters())
    if isinstance(optimizer, _WITH_CLOSURE):
        raise UsageError(
            f"{type(optimizer).__name__} computes the loss several times a step, as often as its values make it",
            "a plan is for one forward and backward pass: use an optimizer whose step() needs no closure",
        )
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strangers = owned - {id(p) for p in parameters.values()}
    if strangers:
        raise UsageError(
            f"the optimizer holds {len(strangers)} parameters that are not the model's",
            "build it from model.parameters(), or make the module that owns them a part of the model",
        )
    shapes = {
        name: update_shape(optimizer, parameters[name]) for name in trace.gradients if id(parameters[name]) in owned
    }
    unowned = [name for name in trace.gradients if name not in shapes]
    for name in unowned:  # a gradient nobody uses: eager keeps it in .grad, a plan need not compute it
        del trace.gradients[name]
    return Captured(trace, type(optimizer).__name__, shapes, is_separable(optimizer), tuple(unowned))


def _refuse_unplannable(model: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UsageError("the model is compiled by torch.jit", "give the model as it was before")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"{name} has no shape before the first batch", "call the model once, and then compile")


def _refuse_hooks(model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Hooks that a planned step would pass over in silence: it has no whole gradient, and no one update."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UsageError(
                f"the parameter {name} has a hook on its gradient, which a planned step does not call",
                "do what it does in the loss or in a module's forward, or remove the hook",
            )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UsageError(
            f"{type(optimizer).__name__} has hooks on its step, which a planned step does not call",
            "remove them, and do what they do before or after the call of the compiled step",
        )
