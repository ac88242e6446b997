"""The user's optimizer as macro-operators: one update per parameter, run by the optimizer's own code.

An optimizer whose parameters do not see each other can update each one as soon as its gradient is complete.
That holds for the optimizers of torch.optim listed in SEPARABLE (read off their single-tensor functions).
Any other optimizer runs as one operator over all its parameters, which holds every gradient until then.

The update itself is the optimizer's own `step`, called on a stand-in that shares state, defaults and live
`param_groups` values (a scheduler's learning rate is read at every step) but owns only a few parameters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim
from torch.utils._python_dispatch import TorchDispatchMode

from gradbase.common.errors import UsageError

SEPARABLE: frozenset[type[optim.Optimizer]] = frozenset(
    {
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.Adagrad,
        optim.RMSprop,
        optim.Adamax,
        optim.NAdam,
        optim.RAdam,
        optim.Adadelta,
        optim.ASGD,
        optim.Rprop,
        optim.Adafactor,
    }
)


def is_separable(optimizer: optim.Optimizer) -> bool:
    """Whether each parameter's update reads no other parameter or gradient."""
    return type(optimizer) in SEPARABLE


def twin_of(optimizer: optim.Optimizer) -> Any:
    """An optimizer with the same attributes, for other state and groups. (`copy` leaves those of subclasses out.)"""
    twin = object.__new__(type(optimizer))
    vars(twin).update(vars(optimizer))
    return twin


def state_of_new(optimizer: optim.Optimizer, parameters: Sequence[torch.Tensor]) -> Any:
    """The state that the optimizer's step finds for new parameters: none where it makes it."""
    state = type(optimizer.state)(dict)
    if isinstance(optimizer, optim.Adagrad) and not _adagrad_makes_state():
        start = optimizer.defaults["initial_accumulator_value"]
        state.update(optim.Adagrad(list(parameters), initial_accumulator_value=start).state)
    return state


@functools.cache
def _adagrad_makes_state() -> bool:
    """Whether its step makes what is missing (torch 2.13), or counts on its constructor to have done so (2.11)."""
    parameter = torch.nn.Parameter(torch.zeros(1, device="meta"))
    parameter.grad = torch.zeros(1, device="meta")
    optimizer = optim.Adagrad([parameter], foreach=False)
    optimizer.state.clear()
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


class StandIn:
    """An optimizer's own code, run on other state and groups than the optimizer's."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self._copy = twin_of(optimizer)
        # Without the wrappers that profile, run hooks and break dynamo graphs at every call.
        self._step = inspect.unwrap(type(optimizer).step)

    def step(self, state: Any, param_groups: list[dict[str, Any]]) -> None:
        """Run the update, and keep nothing of what it was given."""
        self._copy.state, self._copy.param_groups = state, param_groups
        self._step(self._copy)
        self._copy.state, self._copy.param_groups = {}, []


def group_of(optimizer: optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    """The group that holds the parameter, as it is now: load_state_dict replaces groups."""
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


class PartialStep:
    """Steps some parameters of an optimizer, with its own code, state and current hyperparameters."""

    def __init__(self, optimizer: optim.Optimizer, parameters: Sequence[torch.Tensor]) -> None:
        wanted = {id(p) for p in parameters}
        members = [[p for p in group["params"] if id(p) in wanted] for group in optimizer.param_groups]
        self.optimizer = optimizer
        self.parameters = tuple(parameters)
        self._parts = [(index, owned) for index, owned in enumerate(members) if owned]
        self._stand_in = StandIn(optimizer)
        self._separable = is_separable(optimizer)

    @property
    def state(self) -> Any:
        """The optimizer's state, shared with it."""
        return self.optimizer.state

    def __call__(self) -> None:
        """Run the update. Gradients are in `.grad`; gradients must be disabled by the caller."""
        if not self._separable:  # it has all parameters, and may keep more than state and groups: a count of its steps
            inspect.unwrap(type(self.optimizer).step)(self.optimizer)
            return
        # Looked up at every call: load_state_dict replaces both.
        groups = self.optimizer.param_groups
        parts = [{**groups[index], "params": owned} for index, owned in self._parts]
        self._stand_in.step(self.optimizer.state, parts)


@dataclass(frozen=True)
class UpdateShape:
    """What an update of one parameter keeps and does: state bytes by name, bytes moved, arithmetic operations."""

    state: dict[str, int]
    moved_bytes: int
    flops: int


class _CountTraffic(TorchDispatchMode):
    """Counts bytes read and written, and one operation per element written, of tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.moved_bytes = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in (*args, result):
            if isinstance(tensor, torch.Tensor) and tensor.device == self._device:
                self.moved_bytes += tensor.numel() * tensor.element_size()
        if isinstance(result, torch.Tensor) and result.device == self._device:
            self.flops += result.numel()
        return result


def update_shape(optimizer: optim.Optimizer, parameter: torch.Tensor) -> UpdateShape:
    """Learn an update's state and traffic by running the optimizer's code on meta tensors (no memory).

    Code that reads numbers runs on real ones, of the parameter's size. Raises UsageError where it fails there too.
    """
    try:
        return _shape_on(torch.device("meta"), optimizer, parameter)
    except (RuntimeError, NotImplementedError) as error:
        first = error
    try:
        if not parameter.is_meta:
            return _shape_on(parameter.device, optimizer, parameter)
    except (RuntimeError, NotImplementedError) as error:
        first = error
    raise UsageError(
        f"{type(optimizer).__name__} cannot step a parameter of shape {list(parameter.shape)}: {first}",
        "expected an optimizer for dense gradients; on the meta device one that reads no numbers",
    )


def _shape_on(device: torch.device, optimizer: optim.Optimizer, parameter: torch.Tensor) -> UpdateShape:
    stand_in = torch.nn.Parameter(torch.empty_like(parameter, device=device).zero_())
    stand_in.grad = torch.ones_like(stand_in)
    group = {**group_of(optimizer, parameter), "params": [stand_in]}
    if "fused" in group:
        group["fused"] = None
    trial, state = StandIn(optimizer), state_of_new(optimizer, [stand_in])
    with torch.no_grad():
        trial.step(state, [group])  # creates the state
        with _CountTraffic(device) as traffic:
            trial.step(state, [group])
    nbytes = {
        key: value.untyped_storage().nbytes()
        for key, value in state[stand_in].items()
        if isinstance(value, torch.Tensor) and value.device == device and value.dim() >= min(parameter.dim(), 1)
    }
    return UpdateShape(nbytes, traffic.moved_bytes, traffic.flops)
