"""Where operators are run to be measured: memory of the sizes that their plan will give them, filled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from gradbase.buffer import Arena, DeviceArena, Frames, FrameSource, Region
from gradbase.capture import Call, Kept, Program, Ref
from gradbase.executor._packing import unpacked
from gradbase.executor._windows import Scope
from gradbase.ir.logical import Tensor

ALIGNMENT_BYTES = 4096
_POOL_ELEMENTS = 1 << 16


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Measuring leaves the generators as it found them."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class Bench:
    """One arena for all measurements: its pages are touched once, as in the step."""

    def __init__(self, nbytes: int, frames: Frames | None, device: torch.device) -> None:
        self._frames = frames
        self._device = device
        with random_state_kept(device):
            self._pool = torch.rand(_POOL_ELEMENTS, device=device)
        self._arena: FrameSource | None = None
        self._spare: FrameSource | None = None
        self._region: Region | None = None
        self._offsets: dict[int, int] = {}
        self._workspace = 0
        self.reserve(nbytes)

    def reserve(self, nbytes: int) -> None:
        if self._arena is None or self._arena.nbytes < nbytes:
            self._arena = self._new_arena(nbytes)
            self._fill(0, nbytes)

    def _new_arena(self, nbytes: int) -> FrameSource:
        if self._device.type == "cuda":
            return DeviceArena(nbytes, self._device)
        arena = Arena(nbytes)
        if self._frames is not None:
            self._frames.adopt(arena)
        return arena

    def _fill(self, offset: int, nbytes: int) -> None:
        """Plain numbers between 0 and 1: no NaN, no denormals, valid as probabilities and variances."""
        whole = self.floats(offset, nbytes // 4)
        for start in range(0, whole.numel(), _POOL_ELEMENTS):
            part = whole[start : start + _POOL_ELEMENTS]
            part.copy_(self._pool[: part.numel()])

    def floats(self, offset: int, count: int) -> torch.Tensor:
        assert self._arena is not None
        return self._arena.tensor(offset, "float32", (count,), (1,))

    def window(self, offset: int, like: torch.Tensor) -> torch.Tensor:
        assert self._arena is not None
        return self._arena.tensor(offset, like.dtype, like.shape, like.stride())

    def lay_out(self, program: Program, call: Call, workspace_bytes: int = 0) -> None:
        """A place for every storage of a call; arguments filled, integers with zeros (a valid index).

        Linear algebra refuses what is singular: it is given identities, and ones for pivots.
        """
        arguments = call.arguments
        self._offsets = {}
        position = 0
        for value in (*arguments, *(v for v in call.results if v is not None)):
            storage = program.values[value].storage
            if storage not in self._offsets:
                self._offsets[storage] = position
                nbytes = program.plan.storages[storage].nbytes
                position += -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + ALIGNMENT_BYTES
        self._workspace = position
        self.reserve(position + workspace_bytes)
        for value in arguments:
            if is_linear_algebra(call.target):
                _make_identity(self.window_of(program.values[value]))
            else:
                self._prepare(program.values[value], program.plan.storages[program.values[value].storage].nbytes)

    def window_of(self, tensor: Tensor) -> torch.Tensor:
        """Where a call's argument or result is."""
        assert self._arena is not None
        offset = self._offsets[tensor.storage] + tensor.offset * getattr(torch, tensor.dtype).itemsize
        return self._arena.tensor(offset, tensor.dtype, tensor.shape, tensor.strides)

    def _prepare(self, tensor: Tensor, nbytes: int) -> None:
        assert self._arena is not None
        offset = self._offsets[tensor.storage]
        dtype: torch.dtype = getattr(torch, tensor.dtype)
        if not dtype.is_floating_point:
            self._arena.tensor(offset, "uint8", (nbytes,), (1,)).zero_()
        elif dtype == torch.float32:
            self._fill(offset, nbytes)
        else:
            count = nbytes // dtype.itemsize
            self._arena.tensor(offset, dtype, (count,), (1,)).fill_(0.5)

    def windows(self, program: Program, scope: Scope) -> BenchWindows:
        assert self._arena is not None
        return BenchWindows(self, self._arena, self._offsets, self._arena.address + self._workspace, program, scope)

    def region(self, nbytes: int) -> Region:
        """The region, at least so large."""
        if self._region is None or self._region.nbytes < nbytes:
            assert self._frames is not None
            self._region = Region(nbytes)
            self._frames.adopt(self._region)
        return self._region

    def spare(self, nbytes: int) -> int:
        """The address of so many bytes that no window of this bench overlaps."""
        self._spare = self._new_arena(nbytes)
        return self._spare.address


class BenchWindows:
    def __init__(
        self, bench: Bench, arena: FrameSource, offsets: dict[int, int], workspace: int, program: Program, scope: Scope
    ) -> None:
        self._bench = bench
        self._arena = arena
        self._offsets = offsets
        self._workspace = workspace
        self._program = program
        self._scope = scope

    def tensor(self, value: int) -> torch.Tensor:
        return self._bench.window_of(self._program.values[value])

    def given(self, value: int) -> torch.Tensor:
        """What a kernel is given."""
        kept = self.kept(value)
        return self.tensor(value) if kept is None else unpacked(kept, self.region(kept.nbytes))

    def read(self, value: int) -> str:
        return self._scope.bind("t", self.given(value))

    write = read

    def kept(self, value: int) -> Kept | None:
        return self._program.packed.get(value)

    def region(self, nbytes: int) -> Region:
        return self._bench.region(nbytes)

    def overlaid(self) -> bool:
        return True

    def frame(self, value: int) -> tuple[int, int]:
        kept = self.kept(value)
        if kept is not None:
            return self.region(kept.nbytes).address, kept.nbytes
        spec = self._program.values[value]
        return self._arena.address + self._offsets[spec.storage], self._program.plan.storages[spec.storage].nbytes

    def workspace(self) -> int:
        return self._workspace


# Of those that are not called linalg_...
_LINEAR_ALGEBRA = ("cholesky", "geqrf", "inverse", "lu_", "matrix_exp", "orgqr", "ormqr", "triangular_solve")


# As many elements as a mask has.
_SIZED_BY_VALUES = ("masked_scatter_backward",)


def is_linear_algebra(target: Any) -> bool:
    return _name(target).startswith(("linalg_", *_LINEAR_ALGEBRA))


def allocates_by_value(target: Any) -> bool:
    """Whether a kernel decides by the numbers that it is given what it allocates."""
    return is_linear_algebra(target) or _name(target) in _SIZED_BY_VALUES


def _name(target: Any) -> str:
    return str(target._schema.name).removeprefix("aten::").lstrip("_")


def _make_identity(tensor: torch.Tensor) -> None:
    matrices = tensor.dim() > 1 and tensor.dtype.is_floating_point
    tensor.fill_(0 if matrices else 1)
    if matrices:
        tensor.diagonal(dim1=-2, dim2=-1).fill_(1)


def materialized(argument: Any, windows: BenchWindows) -> Any:
    """An argument of a call with tensors in the place of its `Ref`s."""
    if isinstance(argument, Ref):
        return windows.given(argument.value)
    if isinstance(argument, (tuple, list)):
        return [materialized(a, windows) for a in argument]
    return argument


def widest_bytes(program: Program) -> int:
    """What the widest operator needs, so that the measuring arena is allocated once."""
    storages = program.plan.storages
    return max(
        (
            sum(storages[s].nbytes + 2 * ALIGNMENT_BYTES for s in {*op.reads, *op.writes})
            for op in program.plan.operators
        ),
        default=0,
    )
