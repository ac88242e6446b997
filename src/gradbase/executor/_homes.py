"""Homes of what is spilled: tensors that lie in the page file, for the user to read between steps.

While a step runs, a spilled weight or state is paged into a frame, used or updated there and paged out again if it
changed. At any other time the user's `Parameter`, or `optimizer.state`, holds its *home*: a tensor mapped onto the same
place of the page file. The kernel keeps the mapping and direct transfers coherent, so `state_dict()`,
`load_state_dict()` and checkpoints see current values.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn, optim

from gradbase.buffer import PageFile

# A parameter's name and a key in the optimizer's state, or WEIGHT for the parameter itself.
RestName = tuple[str, str]
WEIGHT = ""


@dataclass(frozen=True)
class Home:
    """Where one weight or state tensor rests."""

    parameter: nn.Parameter
    key: str
    tensor: torch.Tensor
    mapping: mmap.mmap

    def move_in(self, optimizer: optim.Optimizer) -> None:
        """What was made or loaded outside of a step goes home before the next one reads it from the file."""
        if self.key == WEIGHT:
            if self.parameter.data_ptr() != self.tensor.data_ptr():
                self.tensor.copy_(self.parameter.detach())
                self.parameter.data = self.tensor
            return
        state = optimizer.state.get(self.parameter)
        if state and state[self.key] is not self.tensor:
            self.tensor.copy_(state[self.key])
            state[self.key] = self.tensor

    def move_out(self, optimizer: optim.Optimizer) -> None:
        """It gets memory of its own again."""
        if self.key == WEIGHT:
            self.parameter.data = self.tensor.clone()
            return
        state = optimizer.state.get(self.parameter)
        if state:
            state[self.key] = self.tensor.clone()


def settle(
    pagefile: PageFile,
    slots: Mapping[RestName, int],
    parameters: Mapping[str, nn.Parameter],
    optimizer: optim.Optimizer,
) -> dict[RestName, Home]:
    """Homes at the given offsets of the page file. What is there already moves in."""
    mapping = mmap.mmap(pagefile.fileno(), pagefile.nbytes)
    homes = {}
    for (name, key), slot in slots.items():
        like = parameters[name].detach()
        flat = torch.frombuffer(mapping, dtype=like.dtype, count=like.numel(), offset=slot)
        homes[name, key] = Home(parameters[name], key, flat.as_strided(like.shape, like.stride()), mapping)
    move_in(homes.values(), optimizer)
    return homes


def move_in(homes: Iterable[Home], optimizer: optim.Optimizer) -> None:
    """All that is not at home goes there, and none of it keeps memory that a mapping has touched."""
    mappings = {}
    for home in homes:
        home.move_in(optimizer)
        mappings[id(home.mapping)] = home.mapping
    for mapping in mappings.values():
        mapping.madvise(mmap.MADV_DONTNEED)


def move_out(homes: Iterable[Home], optimizer: optim.Optimizer) -> None:
    """All of it gets memory of its own again."""
    for home in homes:
        home.move_out(optimizer)
