"""A physical plan as one Python function: every window, address and page slot is decided before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from gradbase.buffer import FrameSource, Region
from gradbase.capture import Kept, Program
from gradbase.executor._lowering import choose, emit
from gradbase.executor._packing import unpacked
from gradbase.executor._traits import Trait
from gradbase.executor._windows import Scope
from gradbase.ir.logical import Tensor
from gradbase.ir.physical import Await, Compute, Instruction, PageIn, PageOut, PhysicalPlan

FILENAME = "<planned step>"


@dataclass(frozen=True)
class Resources:
    """What a generated step works on. `external` holds parameters, buffers and constants by storage.

    `region` is there where a value is kept packed.
    """

    arena: FrameSource
    region: Region | None
    frames: Any
    pager: Any
    external: Mapping[int, torch.Tensor]
    macros: Callable[[int, _Windows], Callable[[], None]]
    slots: Mapping[int, int]  # storage -> offset in the page file
    device: torch.device


@dataclass(frozen=True)
class Generated:
    """The function of one plan: takes the batch's tensors and a list for time stamps, returns the loss.

    `instruction_of[line]` finds the instruction a line belongs to, for errors.
    """

    function: Callable[..., torch.Tensor]
    source: str
    instruction_of: tuple[int, ...]


class _Windows:
    """Expressions and tensors for the values of one instruction."""

    def __init__(self, generator: _Generator, lives: Mapping[int, int], operator: int) -> None:
        self._generator = generator
        self._lives = lives
        self._operator = operator

    def read(self, value: int) -> str:
        kept = self.kept(value)
        if kept is not None:
            return self._generator.scope.bind("t", unpacked(kept, self.region(kept.nbytes)))
        return self._generator.expression(value, self._lives)

    write = read

    def tensor(self, value: int) -> torch.Tensor:
        """The window itself."""
        return self._generator.window(value, self._lives)

    def state(self, storage: int, like: torch.Tensor) -> torch.Tensor | None:
        """The frame of a spilled weight or state, shaped like a given tensor; None where it is resident."""
        if storage not in self._lives:
            return None
        life = self._generator.plan.lives[self._lives[storage]]
        return self._generator.resources.arena.tensor(life.offset, like.dtype, like.shape, like.stride())

    def kept(self, value: int) -> Kept | None:
        return self._generator.program.packed.get(value)

    def region(self, nbytes: int) -> Region:
        region = self._generator.resources.region
        assert region is not None and region.nbytes >= nbytes
        return region

    def overlaid(self) -> bool:
        return self._operator in self._generator.program.overlaid

    def frame(self, value: int) -> tuple[int, int]:
        kept = self.kept(value)
        if kept is not None:
            return self.region(kept.nbytes).address, kept.nbytes
        life = self._generator.plan.lives[self._lives[self._generator.program.values[value].storage]]
        nbytes = self._generator.program.plan.storages[life.storage].nbytes
        return self._generator.resources.arena.address + life.offset, nbytes

    def workspace(self) -> int:
        storage = self._generator.program.workspaces[self._operator]
        life = self._generator.plan.lives[self._lives[storage]]
        return self._generator.resources.arena.address + life.offset


class _Generator:
    def __init__(self, program: Program, plan: PhysicalPlan, traits: Mapping[int, Trait], resources: Resources) -> None:
        self.program = program
        self.plan = plan
        self.traits = traits
        self.resources = resources
        self.scope = Scope()
        self._bound: dict[tuple[int, int], torch.Tensor] = {}
        self._batch: dict[int, str] = {}
        self._replayed = {i.operator for i in plan.instructions if isinstance(i, Compute) and i.run > 0}
        self._positions = {storage: i for i, storage in enumerate(program.batch)}

    # -- windows

    def expression(self, value: int, lives: Mapping[int, int]) -> str:
        storage = self.program.values[value].storage
        if storage in self._positions:
            return self._batch.setdefault(value, f"batch_{value}")
        return self.scope.bind("t", self.window(value, lives))

    def window(self, value: int, lives: Mapping[int, int]) -> torch.Tensor:
        tensor = self.program.values[value]
        key = (value, lives.get(tensor.storage, -1))
        if key not in self._bound:
            self._bound[key] = self._make(tensor, key[1])
        return self._bound[key]

    def _make(self, tensor: Tensor, life: int) -> torch.Tensor:
        if life >= 0:
            itemsize = getattr(torch, tensor.dtype).itemsize
            offset = self.plan.lives[life].offset + tensor.offset * itemsize
            return self.resources.arena.tensor(offset, tensor.dtype, tensor.shape, tensor.strides)
        if tensor.storage not in self.resources.external:
            # The kernel looks at this tensor's shape alone: any place in the arena will do.
            return self.resources.arena.tensor(0, tensor.dtype, tensor.shape, tensor.strides)
        nbytes = self.program.plan.storages[tensor.storage].nbytes
        return window_of(self.resources.external[tensor.storage], tensor, nbytes)

    # -- instructions

    def lines(self, instruction: Instruction) -> list[str]:
        if isinstance(instruction, Compute):
            return self._compute(instruction)
        # Transfers are named by life: a storage may be on its way into a second frame while its first is waited
        # for. That a page is read only after it is written is the plan's business, and verified.
        life = self.plan.lives[instruction.life]
        pager = self.resources.pager
        if isinstance(instruction, Await):
            wait = pager.wait_in if instruction.direction == "in" else pager.wait_out
            return [f"{self.scope.bind('wait', wait)}({life.id})"]
        start = pager.start_out if isinstance(instruction, PageOut) else pager.start_in
        assert isinstance(instruction, (PageOut, PageIn))
        frame = self.scope.bind("frame", self.resources.arena.memory(life.offset, life.nbytes))
        return [f"{self.scope.bind('start', start)}({life.id}, {frame}, {self.resources.slots[life.storage]})"]

    def _compute(self, instruction: Compute) -> list[str]:
        operator = self.program.plan.operators[instruction.operator]
        lives = {self.plan.lives[life].storage: life for life in (*instruction.reads, *instruction.writes)}
        windows = _Windows(self, lives, operator.id)
        call = self.program.calls.get(operator.id)
        if call is None:
            return [f"{self.scope.bind('macro', self.resources.macros(operator.id, windows))}()"]
        lowering = choose(call, self.traits.get(operator.id))
        again = instruction.run > 0
        lines = emit(call, lowering, windows, self.scope, self.resources.frames, again=again)
        if not operator.random or operator.id not in self._replayed:
            return lines
        return self._replaying(operator.id, lines) if again else self._remembering(operator.id, lines)

    def _remembering(self, operator: int, lines: list[str]) -> list[str]:
        return [f"drawn_{operator} = {self.scope.bind('get_state', _get_state(self.resources.device))}()", *lines]

    def _replaying(self, operator: int, lines: list[str]) -> list[str]:
        get_state = self.scope.bind("get_state", _get_state(self.resources.device))
        set_state = self.scope.bind("set_state", _set_state(self.resources.device))
        return [f"now = {get_state}()", f"{set_state}(drawn_{operator})", *lines, f"{set_state}(now)"]

    # -- the function

    def generate(self) -> Generated:
        body: list[str] = []
        owners: list[int] = []
        for index, instruction in enumerate(self.plan.instructions):
            lines = [*self.lines(instruction), "stamp(now_s())"]
            body += lines
            owners += [index] * len(lines)
        last = {life.storage: life.id for life in sorted(self.plan.lives, key=lambda life: life.dies)}
        result = self.expression(self.program.loss, last)
        head = [f"    {name} = window_of(batch[{self._position(v)}], spec_{v})" for v, name in self._batch.items()]
        source = ["def step(batch, stamp):", *head, "    stamp(now_s())", *(f"    {line}" for line in body)]
        source.append(f"    return {result}.detach().clone()")
        names = self.scope.names | {"now_s": perf_counter, "window_of": _batch_window}
        names |= {f"spec_{value}": self.program.values[value] for value in self._batch}
        text = "\n".join(source)
        exec(compile(text, FILENAME, "exec"), names)
        return Generated(names["step"], text, (*([-1] * (len(head) + 2)), *owners, len(self.plan.instructions)))

    def _position(self, value: int) -> int:
        return self._positions[self.program.values[value].storage]


def generate(program: Program, plan: PhysicalPlan, traits: Mapping[int, Trait], resources: Resources) -> Generated:
    """The step as a function. `traits` are by operator id."""
    return _Generator(program, plan, traits, resources).generate()


def window_of(base: torch.Tensor, tensor: Tensor, nbytes: int) -> torch.Tensor:
    """A window onto the storage of a parameter, buffer or constant, which has `nbytes` in the plan.

    Parameters that share a storage are planned as if each had its own.
    """
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    storage = base.detach().untyped_storage()
    offset = tensor.offset + (base.storage_offset() if storage.nbytes() != nbytes else 0)
    return torch.empty(0, dtype=dtype, device=base.device).set_(storage, offset, tensor.shape, tensor.strides)


def _batch_window(leaf: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """A window onto a batch tensor, which may itself be a slice of something larger."""
    return leaf.detach().as_strided(tensor.shape, tensor.strides, leaf.storage_offset() + tensor.offset)


def _get_state(device: torch.device) -> Callable[[], torch.Tensor]:
    return torch.cuda.get_rng_state if device.type == "cuda" else torch.get_rng_state


def _set_state(device: torch.device) -> Callable[[torch.Tensor], None]:
    return torch.cuda.set_rng_state if device.type == "cuda" else torch.set_rng_state


def page_slots(plan: PhysicalPlan, alignment_bytes: int) -> tuple[dict[int, int], int]:
    """A place in the page file for every storage that is paged, and the file's size."""
    paged = [plan.lives[i.life] for i in plan.instructions if isinstance(i, (PageOut, PageIn))]
    slots: dict[int, int] = {}
    position = 0
    for life in paged:
        if life.storage not in slots:
            slots[life.storage] = position
            position += -(-life.nbytes // alignment_bytes) * alignment_bytes
    return slots, position


def stamps_to_us(stamps: Sequence[float]) -> list[float]:
    """Time of each instruction in µs, from the time stamps around them."""
    return [(after - before) * 1e6 for before, after in zip(stamps, stamps[1:], strict=False)]
