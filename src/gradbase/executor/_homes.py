"""Homes of spilled optimizer state: tensors that lie in the page file, for the user to read between steps.

While a step runs, a spilled state is paged into a frame, updated there and paged out again. At any other time
`optimizer.state` holds its *home*: a tensor mapped onto the same place of the page file. The kernel keeps the
mapping and direct transfers coherent, so `state_dict()`, `load_state_dict()` and checkpoints see current values.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn, optim

from gradbase.buffer import PageFile

StateName = tuple[str, str]  # parameter name, key in the optimizer's state


@dataclass(frozen=True)
class Home:
    """Where one state tensor rests."""

    parameter: nn.Parameter
    key: str
    tensor: torch.Tensor


def settle(
    pagefile: PageFile,
    slots: Mapping[StateName, int],
    parameters: Mapping[str, nn.Parameter],
    optimizer: optim.Optimizer,
) -> dict[StateName, Home]:
    """Homes at the given offsets of the page file. State that is already there moves in."""
    mapping = mmap.mmap(pagefile.fileno(), pagefile.nbytes)
    homes = {}
    for (name, key), slot in slots.items():
        like = parameters[name].detach()
        flat = torch.frombuffer(mapping, dtype=like.dtype, count=like.numel(), offset=slot)
        homes[name, key] = Home(parameters[name], key, flat.as_strided(like.shape, like.stride()))
    move_in(homes, optimizer)
    return homes


def move_in(homes: Mapping[StateName, Home], optimizer: optim.Optimizer) -> None:
    """State that was made or loaded outside of a step goes home before the next one reads it from the file."""
    for home in homes.values():
        state = optimizer.state.get(home.parameter)
        if state and state[home.key] is not home.tensor:
            home.tensor.copy_(state[home.key])
            state[home.key] = home.tensor


def move_out(homes: Mapping[StateName, Home], optimizer: optim.Optimizer) -> None:
    """State gets memory of its own again."""
    for home in homes.values():
        state = optimizer.state.get(home.parameter)
        if state:
            state[home.key] = home.tensor.clone()
