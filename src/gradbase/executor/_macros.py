"""Macro-operators: the optimizer's updates, clipping and accumulation, on the user's own objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim

from gradbase.capture import BlockStep, PartialStep, Program, Update
from gradbase.executor._codegen import _Windows
from gradbase.executor._traits import Trait, Workspace


@dataclass
class Accumulation:
    """Whether the next accumulation starts a new sum, and who is told which parameters' sums are complete."""

    fresh: bool = True
    on_ready: Callable[[Sequence[str]], None] | None = None


@dataclass(frozen=True)
class Spilled:
    """A state tensor that rests in the page file: its frame while the update runs, and its home for the user."""

    parameter: torch.Tensor
    key: str
    frame: torch.Tensor
    home: torch.Tensor


@dataclass(frozen=True)
class SpilledWeight:
    """A parameter that rests in the page file, its frame while the update runs, and its home."""

    parameter: torch.nn.Parameter
    frame: torch.Tensor
    home: torch.Tensor


class MacroFactory:
    """Makes the callables of one plan's macro-operators."""

    def __init__(
        self,
        program: Program,
        optimizer: optim.Optimizer,
        parameters: Mapping[str, torch.nn.Parameter],
        traits: Mapping[int, Trait],
        *,
        frames: Any,
        homes: Mapping[int, torch.Tensor],
        accumulators: Mapping[str, torch.Tensor],
        accumulation: Accumulation,
        max_norm: float | None,
    ) -> None:
        self._program = program
        self._optimizer = optimizer
        self._parameters = parameters
        self._traits = traits
        self._frames = frames
        self._homes = homes
        self._accumulators = accumulators
        self._accumulation = accumulation
        self._max_norm = max_norm

    def __call__(self, operator: int, windows: _Windows) -> Callable[[], None]:
        tail = self._program.tail
        if operator in tail.updates:
            return self._update(operator, tail.updates[operator], windows)
        if operator in tail.accumulations:
            return self._accumulate(tail.accumulations[operator], windows)
        assert operator == tail.clip
        return self._clip(tail.clipped, windows)

    def _gradient(self, name: str, value: int, windows: _Windows) -> torch.Tensor:
        """The accumulator where there is one, else the frame that holds the gradient."""
        return self._accumulators[name] if name in self._accumulators else windows.tensor(value)

    def _update(self, operator: int, update: Update, windows: _Windows) -> Callable[[], None]:
        owned = [self._parameters[name] for name in update.names]
        pairs = [
            (p, self._gradient(n, g, windows)) for n, g, p in zip(update.names, update.gradients, owned, strict=True)
        ]
        spilled = list(self._spilled(update.names, windows))
        weights = list(self._weights(update.names, windows))
        trait = self._traits.get(operator, Trait())
        arms = _Arms(self._frames, trait, windows, spilled)
        if trait.blocks:
            frames = {item.key: item.frame for item in spilled}
            step: Callable[[], None] = BlockStep(self._optimizer, owned[0], frames)
        else:
            step = PartialStep(self._optimizer, owned)
        return _UpdateCall(step, pairs, weights, spilled, arms, self._optimizer)

    def _weights(self, names: Sequence[str], windows: _Windows) -> Iterator[SpilledWeight]:
        for name in names:
            storage = self._program.parameters[name]
            if storage in self._homes:
                frame = windows.state(storage, self._homes[storage])
                assert frame is not None
                yield SpilledWeight(self._parameters[name], frame, self._homes[storage])

    def _spilled(self, names: Sequence[str], windows: _Windows) -> Any:
        for storage, (name, key) in self._program.tail.states.items():
            if name in names and storage in self._homes:
                home = self._homes[storage]
                frame = windows.state(storage, home)
                assert frame is not None
                yield Spilled(self._parameters[name], key, frame, home)

    def _accumulate(self, update: Update, windows: _Windows) -> Callable[[], None]:
        triples = [
            (self._parameters[n], self._accumulators[n], windows.tensor(g))
            for n, g in zip(update.names, update.gradients, strict=True)
        ]
        accumulation = self._accumulation

        def run() -> None:
            with torch.no_grad():
                for parameter, accumulator, gradient in triples:
                    accumulator.copy_(gradient) if accumulation.fresh else accumulator.add_(gradient)
                    parameter.grad = accumulator
            if accumulation.on_ready is not None:
                accumulation.on_ready(update.names)

        return run

    def _clip(self, update: Update, windows: _Windows) -> Callable[[], None]:
        pairs = [
            (self._parameters[n], self._gradient(n, g, windows))
            for n, g in zip(update.names, update.gradients, strict=True)
        ]
        assert self._max_norm is not None
        max_norm = self._max_norm

        def run() -> None:
            for parameter, gradient in pairs:
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_([p for p, _ in pairs], max_norm)

        return run


class _Arms:
    """Arms the allocator for an update's temporaries: other ones when it creates the optimizer's state."""

    def __init__(self, frames: Any, trait: Trait, windows: _Windows, spilled: Sequence[Spilled]) -> None:
        self._frames = frames
        frame_of = {item.key: item.frame for item in spilled}
        created = [
            (index, frame_of[key].data_ptr(), frame_of[key].untyped_storage().nbytes())
            for key, index in trait.created
            if key in frame_of
        ]
        self._first = self._prepared([*created, *_planned(trait.first, windows)])
        self._steady = self._prepared(_planned(trait.workspace, windows))

    def _prepared(self, planned: list[tuple[int, int, int]]) -> Any:
        return self._frames.prepare(sorted(planned)) if planned else None

    def run(self, step: Callable[[], None], first: bool) -> None:
        prepared = self._first if first else self._steady
        if prepared is None:
            step()
            return
        self._frames.expect(prepared)
        try:
            step()
        finally:
            # Another number of temporaries than measured (a changed hyperparameter) only takes memory from malloc.
            self._frames.disarm()


def _planned(workspace: Workspace, windows: _Windows) -> list[tuple[int, int, int]]:
    return [(index, windows.workspace() + offset, nbytes) for index, nbytes, offset in workspace.places]


class _UpdateCall:
    """One update. Gradients are lent to the parameters while it runs, and spilled weights and state are in frames."""

    def __init__(
        self,
        step: Callable[[], None],
        pairs: Sequence[tuple[torch.nn.Parameter, torch.Tensor]],
        weights: Sequence[SpilledWeight],
        spilled: Sequence[Spilled],
        arms: _Arms,
        optimizer: optim.Optimizer,
    ) -> None:
        self._step = step
        self._pairs = pairs
        self._weights = weights
        self._spilled = spilled
        self._arms = arms
        self._optimizer = optimizer

    def __call__(self) -> None:
        for weight in self._weights:
            weight.parameter.data = weight.frame
        try:
            self._run()
        finally:
            for weight in self._weights:
                weight.parameter.data = weight.home

    def _run(self) -> None:
        state = self._optimizer.state
        first = not state.get(self._pairs[0][0])
        for parameter, gradient in self._pairs:
            parameter.grad = gradient
        if not first:
            for item in self._spilled:
                state[item.parameter][item.key] = item.frame
        with torch.no_grad():
            self._arms.run(self._step, first)
        for parameter, _ in self._pairs:
            parameter.grad = None
        for item in self._spilled:
            made = state[item.parameter][item.key]
            if made.data_ptr() != item.frame.data_ptr():  # created by malloc: the allocator is not ours
                item.frame.copy_(made)
            state[item.parameter][item.key] = item.home
