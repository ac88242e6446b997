"""What would draw other random numbers in a plan than in eager PyTorch.

A plan draws in the order of the trace. Activation checkpointing of the user's own sets the generator back before it
computes a second time, which a trace does not see: its dropout would get other noise the second time. So a trace
computes once (the plan recomputes by its own decision, with the same results), and a step that sets generators itself
is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch.utils import checkpoint

from gradbase.capture._modules import user_line
from gradbase.common.errors import CaptureError


@contextlib.contextmanager
def one_order_of_draws() -> Iterator[None]:
    """While it is open checkpointed functions are simply called, and setting the generator raises CaptureError."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(checkpoint, "_checkpoint_without_reentrant_generator", _around_a_call))
        stack.enter_context(_replaced(checkpoint, "CheckpointFunction", _Called))
        for module in (torch, torch.random):
            for name in ("manual_seed", "set_rng_state"):
                stack.enter_context(_replaced(module, name, _refused(name)))
        yield


class _Called:
    """Stands for the autograd function of reentrant checkpointing."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _around_a_call(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    """Stands for what `checkpoint` does before and after the call: nothing."""
    yield


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise CaptureError(
            f"the step calls torch.{name}: {user_line()}",
            "a plan draws random numbers in one order, from the generator as it is when a step begins",
            "set the generator between steps, or pass the numbers with the batch",
        )

    return refuse


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
