"""An optimizer's step on one large parameter, block by block.

Between one operation on a parameter and the next, PyTorch's optimizers make temporaries of its size. Those of a block
are small, and its numbers are still in the cache when the next operation wants them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import optim

from gradbase.capture._optimizer import StandIn, group_of

BLOCK_NUMEL = 1 << 18

# Each element's update reads that element of parameter, gradient and state, and numbers that all elements share.
_ELEMENTWISE: frozenset[type[optim.Optimizer]] = frozenset(
    {optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad, optim.RMSprop, optim.Adamax, optim.NAdam, optim.RAdam}
)
# With these an optimizer handles all that it is given at a time, or more than numbers.
_AT_ONCE = ("foreach", "capturable", "differentiable")
# The check runs on so many elements: blocks, and a rest that no vector divides.
_CHECKED_NUMEL = 2 * BLOCK_NUMEL + 4321


class BlockStep:
    """Steps one parameter of an optimizer, with its own code, state and current hyperparameters.

    The optimizer is given flat blocks of the parameter, its gradient and its state as if they were parameters of their
    own. `frames` says where state of a kind is to be made.
    """

    def __init__(
        self, optimizer: optim.Optimizer, parameter: torch.Tensor, frames: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self._optimizer = optimizer
        self._parameter = parameter
        self._frames = frames or {}
        self._stand_in = StandIn(optimizer)

    @property
    def state(self) -> Any:
        """The optimizer's state, shared with it."""
        return self._optimizer.state

    def __call__(self) -> None:
        """Run the update. The gradient is in `.grad`; gradients must be disabled by the caller."""
        kept = self._optimizer.state.get(self._parameter)
        blocks = list(self._blocks())
        if kept:
            self._go_on(blocks, kept)
        else:
            self._begin(blocks)

    def _blocks(self) -> Iterator[torch.Tensor]:
        gradient = self._parameter.grad
        assert gradient is not None
        for values, grads in zip(_split(self._parameter.data), _split(gradient), strict=True):
            values.grad = grads
            yield values

    def _go_on(self, blocks: list[torch.Tensor], kept: dict[str, Any]) -> None:
        whole = {key for key, value in kept.items() if self._is_whole(value)}
        parts = {key: _split(kept[key]) for key in whole}
        states: list[dict[str, Any]] = [
            {key: parts[key][index] if key in whole else _copied(value) for key, value in kept.items()}
            for index in range(len(blocks))
        ]
        self._run(blocks, states)
        for key in kept.keys() - whole:
            kept[key] = states[0][key]

    def _begin(self, blocks: list[torch.Tensor]) -> None:
        """The first step makes the state of a block, which is copied to where the whole state is."""
        first: dict[str, Any] = {}
        self._run(blocks[:1], [first])
        if not first:  # an optimizer without state
            self._run(blocks[1:], [{} for _ in blocks[1:]])
            return
        whole = [key for key, v in first.items() if isinstance(v, torch.Tensor) and v.numel() == BLOCK_NUMEL]
        # Asked for even where a frame is given: the allocator knows an update's temporaries by their number.
        places = {key: self._frames.get(key, torch.empty_like(self._parameter.data)) for key in whole}
        self._optimizer.state[self._parameter] = first | places
        parts = {key: _split(place) for key, place in places.items()}
        for index, block in enumerate(blocks):
            made = first if index == 0 else {}
            if index:
                self._run([block], [made])
            for key in whole:
                parts[key][index].copy_(made[key])

    def _run(self, blocks: list[torch.Tensor], states: list[dict[str, Any]]) -> None:
        """The optimizer's step on these blocks; their state is made, or left, in `states`."""
        state = type(self._optimizer.state)(dict)
        for block, known in zip(blocks, states, strict=True):
            state[block] = known
        self._stand_in.step(state, [{**group_of(self._optimizer, self._parameter), "params": blocks}])

    def _is_whole(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.numel() == self._parameter.numel()


def takes_blocks(optimizer: optim.Optimizer, parameter: torch.Tensor) -> bool:
    """Whether an update may be cut into blocks, and gives the same bits then.

    Cutting moves the ends at which kernels leave their vector loop; whether the scalar loop that follows rounds alike
    is tried out.
    """
    group = group_of(optimizer, parameter)
    if type(optimizer) not in _ELEMENTWISE or any(group.get(name) for name in _AT_ONCE):
        return False
    if parameter.numel() < 2 * BLOCK_NUMEL or parameter.is_complex():
        return False
    if not torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return False
    return _same_bits(optimizer, group, parameter.dtype)


def _same_bits(optimizer: optim.Optimizer, group: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Two steps of the whole and of blocks, from the same numbers."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(_CHECKED_NUMEL, generator=generator).to(dtype) for _ in range(3))
    results = []
    for in_blocks in (False, True):
        parameter = torch.nn.Parameter(start.clone())
        trial = type(optimizer)([parameter], **_arguments(optimizer))
        trial.param_groups = [{**group, "params": [parameter]}]
        step = BlockStep(trial, parameter) if in_blocks else trial.step
        for gradient in gradients:
            parameter.grad = gradient.clone()
            with torch.no_grad():
                step()
        results.append(parameter.data)
    return torch.equal(*results)


def _arguments(optimizer: optim.Optimizer) -> dict[str, Any]:
    """What a new optimizer of the kind is to be made with, so that its state starts the same way."""
    known = inspect.signature(type(optimizer).__init__).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in known}


def _split(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The elements in the order of memory, in blocks."""
    return tensor.as_strided((tensor.numel(),), (1,)).split(BLOCK_NUMEL)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
