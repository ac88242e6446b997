"""The executor: binds plans to one arena, one page file and the user's objects, and runs steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn, optim

from gradbase.buffer import Arena, CudaPager, DeviceArena, Frames, FrameSource, PageFile, Pager, Region
from gradbase.capture import Program
from gradbase.common.errors import GradbaseError, StepError, UsageError
from gradbase.common.malloc import freed_memory_returned
from gradbase.executor._codegen import FILENAME, Generated, Resources, generate, page_slots, stamps_to_us
from gradbase.executor._homes import WEIGHT, Home, RestName, move_in, move_out, settle
from gradbase.executor._macros import Accumulation, MacroFactory
from gradbase.executor._peak import PeakMeter
from gradbase.executor._traits import Trait
from gradbase.ir.physical import Compute, PhysicalPlan

_PAGE_BYTES = 4096


@dataclass
class Planned:
    """One plan and what the executor knows of it. `generated` is None until it is bound to the arena.

    `times_us[i]` are the times of instruction i in the last steps.
    """

    program: Program
    plan: PhysicalPlan
    traits: Mapping[int, Trait]
    generated: Generated | None = None
    pointers: tuple[int, ...] = ()
    times_us: list[list[float]] = field(default_factory=list)


class Engine:
    """Runs planned steps of one model and optimizer. Steps of different batch shapes share its arena."""

    _TIMES_KEPT = 16

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        frames: Frames | None,
        page_directory: Path,
        max_norm: float | None,
        device: torch.device,
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers())
        self._optimizer = optimizer
        self._frames = frames
        self._page_directory = page_directory
        self._max_norm = max_norm
        self._device = device
        self._arena: FrameSource | None = None
        self._region: Region | None = None
        self._pagefile: PageFile | None = None
        self._pager: Pager | CudaPager | None = None
        self._paged_bytes = 0
        self._rest_slots: dict[RestName, int] = {}
        self._rest_bytes = 0
        self._homes: dict[RestName, Home] = {}
        self._accumulators: dict[str, torch.Tensor] = {}
        self._bound: list[Planned] = []
        self.accumulation = Accumulation()
        self.meter: PeakMeter | None = None

    def follow(self, parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, torch.Tensor]) -> None:
        """Take over buffers that were replaced. Raises UsageError where parameters were: they have a state."""
        for name, parameter in self._parameters.items():
            if parameters.get(name) is not parameter:
                raise UsageError(
                    f"the model's parameter {name} is not the one that the step was compiled with",
                    "compile the step again after parts of a model are replaced, or loaded with assign=True",
                )
        self._buffers = dict(buffers)

    # -- binding

    def bind(self, planned: Planned) -> None:
        """Make the plan runnable: arena and page file large enough, windows, generated function."""
        self._grow_arena(planned.plan.arena_bytes)
        self._grow_region(max((kept.nbytes for kept in planned.program.packed.values()), default=0))
        slots = self._page_slots(planned)
        self._make_accumulators(planned.program)
        assert self._arena is not None
        resources = Resources(
            arena=self._arena,
            region=self._region,
            frames=self._frames,
            pager=self._pager,
            external=self._external(planned.program),
            macros=self._macros(planned),
            slots=slots,
            device=self._device,
        )
        generated = generate(planned.program, planned.plan, planned.traits, resources)
        if self.meter is None:
            self.meter = self._new_meter(planned.program)
        planned.generated, planned.pointers = generated, self._pointers()
        self._bound.append(planned)

    def _new_meter(self, program: Program) -> PeakMeter:
        """Counts from here on what the process takes beside what is already there and belongs to the step."""
        assert self._arena is not None
        counted_bytes = self._resident_bytes() + self._arena.nbytes
        counted_bytes += sum(program.plan.storages[s].nbytes for s in program.batch)
        return PeakMeter(self._device, counted_bytes)

    def _resident_bytes(self) -> int:
        """Parameters, buffers, accumulators, and the optimizer state and gradients from before the first step."""
        tensors = [*self._parameters.values(), *self._buffers.values(), *self._accumulators.values()]
        tensors += [t for s in self._optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        tensors += [p.grad for p in self._parameters.values() if p.grad is not None]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        at_home = {home.tensor.untyped_storage().data_ptr() for home in self._homes.values()}
        return sum(nbytes for pointer, nbytes in sizes.items() if pointer not in at_home)

    def _grow_arena(self, nbytes: int) -> None:
        if self._arena is not None and self._arena.nbytes >= nbytes:
            return
        self._unbind()
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        cuda = self._device.type == "cuda"
        self._arena = DeviceArena(nbytes, self._device) if cuda else Arena(nbytes)
        if self._frames is not None and isinstance(self._arena, Arena):
            self._frames.adopt(self._arena)

    def _grow_region(self, nbytes: int) -> None:
        """Nothing of it is memory before a kernel touches it."""
        if nbytes > (self._region.nbytes if self._region else 0):
            assert self._frames is not None, "results are packed where kernels are handed frames"
            self._unbind()
            self._region = Region(nbytes)
            self._frames.adopt(self._region)

    def _unbind(self) -> None:
        for planned in self._bound:
            planned.generated = None
        self._bound.clear()

    def _page_slots(self, planned: Planned) -> dict[int, int]:
        """Places in the page file: what is spilled first, at the same place in every plan, then this plan's pages."""
        slots, paged_bytes = page_slots(planned.plan, _PAGE_BYTES)
        if not slots:
            return slots
        names = _rest_names(planned.program)
        if planned.plan.spilled:
            self._reserve(planned.program, names)
        slots = {storage: self._rest_bytes + offset for storage, offset in slots.items()}
        slots |= {storage: self._rest_slots[names[storage]] for storage in planned.plan.spilled}
        self._grow_pagefile(self._rest_bytes + paged_bytes)
        unsettled = {names[s]: slots[s] for s in planned.plan.spilled if names[s] not in self._homes}
        if unsettled:
            assert self._pagefile is not None, "weights and state are spilled to files only"
            self._homes |= settle(self._pagefile, unsettled, self._parameters, self._optimizer)
        return slots

    def _reserve(self, program: Program, names: Mapping[int, RestName]) -> None:
        """A place for all that any plan may spill, so that none of it has to move when another plan comes."""
        for storage, name in names.items():
            if name not in self._rest_slots:
                self._rest_slots[name] = self._rest_bytes
                nbytes = program.plan.storages[storage].nbytes
                self._rest_bytes += -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES

    def _grow_pagefile(self, nbytes: int) -> None:
        """A page file of at least so many bytes. Spilled state moves through memory into the new one."""
        if self._pager is not None and self._paged_bytes >= nbytes:
            return
        self._unbind()
        self._close_pagefile()
        if self._device.type == "cuda":
            self._pager = CudaPager(nbytes, self._device)
            self._paged_bytes = nbytes
            return
        self._pagefile = PageFile(self._page_directory, nbytes)
        self._pager = Pager(self._pagefile)
        self._paged_bytes = self._pagefile.nbytes

    def _close_pagefile(self) -> None:
        move_out(self._homes.values(), self._optimizer)
        self._homes.clear()
        if self._pager is not None:
            self._pager.close()
        if self._pagefile is not None:
            self._pagefile.close()
        self._pager = self._pagefile = None

    def _external(self, program: Program) -> dict[int, torch.Tensor]:
        tensors: dict[int, torch.Tensor] = dict(program.constants)
        tensors |= {storage: self._parameters[name] for name, storage in program.parameters.items()}
        tensors |= {storage: self._buffers[name] for name, storage in program.buffers.items()}
        return tensors

    def _make_accumulators(self, program: Program) -> None:
        """One a parameter. Where only gradients are wanted, the caller's own `.grad` is it."""
        for update in program.tail.accumulations.values():
            for name in update.names:
                if name not in self._accumulators:
                    parameter = self._parameters[name]
                    given = None if program.tail.updates else parameter.grad
                    self._accumulators[name] = torch.zeros_like(parameter) if given is None else given

    def _macros(self, planned: Planned) -> MacroFactory:
        return MacroFactory(
            planned.program,
            self._optimizer,
            self._parameters,
            planned.traits,
            frames=self._frames,
            homes=self._homes_of(planned),
            accumulators=self._accumulators if planned.program.tail.accumulations else {},
            accumulation=self.accumulation,
            max_norm=self._max_norm,
        )

    def _homes_of(self, planned: Planned) -> dict[int, torch.Tensor]:
        names = _rest_names(planned.program)
        return {storage: self._homes[names[storage]].tensor for storage in planned.plan.spilled}

    def _pointers(self) -> tuple[int, ...]:
        return tuple(t.data_ptr() for t in (*self._parameters.values(), *self._buffers.values()))

    # -- running

    def run(self, planned: Planned, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """One step. Returns the loss, a scalar tensor of its own.

        Raises StepError, which says whether parameters were changed; a Ctrl-C is raised after the step.
        """
        with _interrupts_after_step(), freed_memory_returned(), torch.enable_grad():
            move_in(self._homes.values(), self._optimizer)
            if planned.generated is None or planned.pointers != self._pointers():
                self.bind(planned)
            return self._run_bound(planned, leaves)

    def _run_bound(self, planned: Planned, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        assert planned.generated is not None and self.meter is not None
        stamps: list[float] = []
        self.meter.reset()
        try:
            loss = planned.generated.function(leaves, stamps.append)
        except BaseException as error:
            raise self._explained(planned, error) from error
        self.meter.read()
        if self._device.type != "cuda":  # there, calls return before kernels are done
            planned.times_us = [*planned.times_us[1 - self._TIMES_KEPT :], stamps_to_us(stamps)]
        return loss

    def _explained(self, planned: Planned, error: BaseException) -> BaseException:
        """Which operator failed, and what that means for the parameters."""
        if self._frames is not None:
            self._frames.disarm()
        if self._pager is not None:
            with suppress(GradbaseError):  # transfers behind the failed one: `error` is the first
                self._pager.drain()
        for name, parameter in self._parameters.items():
            parameter.grad = None if planned.program.tail.updates else self._accumulators.get(name)
        position = _failed_instruction(planned, error.__traceback__)
        state = _state_after(planned, position, self.accumulation)
        name = _operator_name(planned, position)
        if isinstance(error, GradbaseError):
            return StepError(f"the step failed at {name}: {error.problem}", *error.remedies, state)
        if isinstance(error, Exception):
            return StepError(f"the step failed at {name}: {type(error).__name__}: {error}", state)
        return error

    def traffic(self) -> Any:
        """The pager's statistics; None if nothing was ever paged."""
        return None if self._pager is None else self._pager.statistics()

    def close(self) -> None:
        """Give arena and page file back. Spilled weights and state return to memory of their own."""
        self._unbind()
        self._close_pagefile()
        if self._arena is not None:
            self._arena.close()
        self._arena = self._region = None


def _rest_names(program: Program) -> dict[int, RestName]:
    """The storages that a plan may spill, by what they are to the user."""
    return {**program.tail.states, **{storage: (name, WEIGHT) for name, storage in program.parameters.items()}}


def _failed_instruction(planned: Planned, trace: TracebackType | None) -> int:
    """The instruction whose line of the generated function is on the traceback; -1 if none is."""
    assert planned.generated is not None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            lines = planned.generated.instruction_of
            return lines[min(trace.tb_lineno, len(lines)) - 1]
        trace = trace.tb_next
    return -1


def _state_after(planned: Planned, position: int, accumulation: Accumulation) -> str:
    """What a failure at an instruction means for the user's parameters and gradients."""
    tail = planned.program.tail
    updated, updates = _done(planned, position, tail.updates)
    if updated:
        return (
            f"{updated} of {updates} updates had been applied: parameters are between two steps, "
            "load a checkpoint before going on"
        )
    added, _ = _done(planned, position, tail.accumulations)
    if added and not accumulation.fresh:
        return "no parameter was changed, but gradients are partly added: repeat the whole step, not this call alone"
    return "no parameter was changed: the step can be repeated"


def _done(planned: Planned, position: int, operators: Collection[int]) -> tuple[int, int]:
    """How many of the operators had begun by an instruction, of how many."""
    # The failing one itself may have changed its tensors half.
    at = [i for i, x in enumerate(planned.plan.instructions) if isinstance(x, Compute) and x.operator in operators]
    return sum(index <= position for index in at), len(at)


def _operator_name(planned: Planned, position: int) -> str:
    if 0 <= position < len(planned.plan.instructions):
        instruction = planned.plan.instructions[position]
        if isinstance(instruction, Compute):
            operator = planned.program.plan.operators[instruction.operator]
            return f"{operator.name} ({operator.module or 'model'}{', ' + operator.source if operator.source else ''})"
        storage = planned.program.plan.storages[planned.plan.lives[instruction.life].storage]
        return f"paging of {storage.name}"
    return "its inputs"


@contextmanager
def _interrupts_after_step() -> Iterator[None]:
    """A Ctrl-C while a step runs is raised when the step is done, so parameters are never between two steps.

    Where no Python code handles it (other threads, ignored, or the process is to end at once) it stays as it is.
    """
    previous: Callable[..., Any] | int | None = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        previous(*pending[0])
