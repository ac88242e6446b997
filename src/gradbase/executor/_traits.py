"""What running an operator once teaches about how to run it, and how the program takes it in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gradbase.buffer import Allocation, Runs, total_bytes
from gradbase.capture import Call, Kept, Program
from gradbase.ir.logical import Operator, Storage, Tensor

# Allocations below this stay with malloc: a plan need not bother with them.
_WORTH_PLANNING_BYTES = 4096
_ALIGNMENT_BYTES = 64
_FORMAT = 6  # of the details in the catalogue; count up when their meaning changes

Layout = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Workspace:
    """A kernel's temporaries, each at an offset: (index among its allocations, bytes, offset)."""

    nbytes: int = 0
    places: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Packing:
    """How a kernel uses the region, where hidden results lie while kernels use them (see `_packing.py`).

    `nbytes` is what the kernel asks for and `touched` what of it is touched while it runs. `result` is the result
    that is kept packed afterwards, as the runs `kept`, or None. `held_bytes` of what is touched are kept in frames
    too. The frame of such a result is free until the kernel has run, that of a packed argument once it is unpacked:
    `overlay` are temporaries that go there, as (index among the allocations, bytes, offset).
    """

    nbytes: int
    touched: Runs
    held_bytes: int
    result: int | None = None
    kept: Runs = ()
    overlay: tuple[tuple[int, int, int], ...] = ()

    @property
    def extra_bytes(self) -> int:
        """What is touched beside what is kept: the kernel's own workspace, in the midst of a result."""
        return total_bytes(self.touched) - self.held_bytes

    @property
    def overlay_bytes(self) -> int:
        return max((aligned(offset + nbytes) for _, nbytes, offset in self.overlay), default=0)


@dataclass(frozen=True)
class Trait:
    """How an operator is run; stored as the `details` of its statistics.

    `served[i]` is the index of the i-th result among the kernel's allocations (None: unused or empty); `served`
    itself is None where results are not allocations of their own. `layouts[i]` is (dtype, shape, strides) as the
    kernel really returns it. `native` is False for a kernel whose out= form refuses memory that is not its own to
    resize. For an update, `first` is the workspace of the one that creates the optimizer's state, and `created`
    says which of its allocations become state, as (key, index); `blocks` says that it runs block by block, which
    eager's does not, and `whole_bytes` is eager's workspace. `packing` is None for all that do not use the region.
    """

    served: tuple[int | None, ...] | None = None
    layouts: tuple[Layout | None, ...] = ()
    workspace: Workspace = Workspace()
    first: Workspace = Workspace()
    native: bool = True
    created: tuple[tuple[str, int], ...] = ()
    packing: Packing | None = None
    blocks: bool = False
    whole_bytes: int = 0

    @property
    def workspace_bytes(self) -> int:
        return max(self.workspace.nbytes, self.first.nbytes)

    def encoded(self, way: str) -> str:
        """JSON for the catalogue."""
        fields = {"format": _FORMAT, "way": way, "native": self.native, "created": self.created}
        fields |= {"served": self.served, "layouts": self.layouts}
        fields |= {"blocks": self.blocks, "whole_bytes": self.whole_bytes}
        fields |= {"packing": None if self.packing is None else asdict(self.packing)}
        fields |= {"workspace": [self.workspace.nbytes, self.workspace.places]}
        return json.dumps(fields | {"first": [self.first.nbytes, self.first.places]})

    @staticmethod
    def known(text: str) -> bool:
        """Whether `details` were written in the present format: if not, the operator counts as not measured."""
        fields = json.loads(text) if text else {}
        return isinstance(fields, dict) and fields.get("format") == _FORMAT

    @staticmethod
    def decoded(text: str) -> Trait:
        fields = json.loads(text)
        served = None if fields["served"] is None else tuple(fields["served"])
        layouts = tuple(x if x is None else (x[0], tuple(x[1]), tuple(x[2])) for x in fields["layouts"])
        created = tuple((key, index) for key, index in fields["created"])
        workspace, first = _workspace(fields["workspace"]), _workspace(fields["first"])
        packing, blocks, whole_bytes = _packing(fields["packing"]), fields["blocks"], fields["whole_bytes"]
        return Trait(served, layouts, workspace, first, fields["native"], created, packing, blocks, whole_bytes)


def _workspace(fields: Any) -> Workspace:
    return Workspace(fields[0], tuple((i, n, o) for i, n, o in fields[1]))


def _packing(fields: Any) -> Packing | None:
    if fields is None:
        return None
    tuples = {name: tuple(map(tuple, fields[name])) for name in ("touched", "kept", "overlay")}
    return Packing(fields["nbytes"], held_bytes=fields["held_bytes"], result=fields["result"], **tuples)


def pack_workspace(allocations: Iterable[Allocation], limit_bytes: int | None = None) -> Workspace:
    """Lay a kernel's temporaries out, first fit by size: those alive at the same time do not overlap.

    With a limit, what does not fit below it is left out.
    """
    temporaries = [a for a in allocations if a.freed_inside and a.nbytes >= _WORTH_PLANNING_BYTES]
    placed: list[tuple[int, Allocation]] = []
    for allocation in sorted(temporaries, key=lambda a: (-a.nbytes, a.index)):
        rivals = sorted(
            (o, o + aligned(b.nbytes)) for o, b in placed if b.born < allocation.freed and allocation.born < b.freed
        )
        offset = 0
        for start, end in rivals:
            if offset + allocation.nbytes <= start:
                break
            offset = max(offset, end)
        if limit_bytes is None or offset + aligned(allocation.nbytes) <= limit_bytes:
            placed.append((offset, allocation))
    places = sorted((a.index, a.nbytes, o) for o, a in placed)
    return Workspace(max((o + aligned(n) for _, n, o in places), default=0), tuple(places))


def aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def apply_trait(program: Program, operator: Operator, trait: Trait) -> None:
    """Take in what tracing could not know: the size of hidden results, what is kept of them, and the workspace."""
    call = program.calls.get(operator.id)
    if call is not None and trait.packing is not None:
        _apply_packing(program, operator.id, call, trait.packing)
    for value, layout in zip(call.results if call else (), trait.layouts, strict=False):
        if value is not None and layout is not None and _surprises(program.values[value], layout):
            _replace_value(program, value, Tensor(program.values[value].storage, *layout))
    nbytes = trait.workspace_bytes
    if trait.packing is not None and trait.packing.result is None and operator.id not in program.overlaid:
        nbytes += trait.packing.overlay_bytes
    if nbytes and operator.id not in program.workspaces:
        _add_workspace(program, operator.id, nbytes)


def _apply_packing(program: Program, operator: int, call: Call, packing: Packing) -> None:
    if packing.result is not None:
        value = call.results[packing.result]
        assert value is not None
        program.packed[value] = Kept(packing.nbytes, packing.kept)
    elif packing.overlay and operator not in program.overlaid:
        storages = {program.values[value].storage for value in packed_arguments(program, call)}
        if not any(storages & set(later.reads) for later in program.plan.operators[operator + 1 :]):
            _overlay(program, operator, tuple(storages))


def packed_arguments(program: Program, call: Call) -> list[int]:
    """The values among a call's arguments that are kept packed."""
    return [value for value in dict.fromkeys(call.arguments) if value in program.packed]


def _overlay(program: Program, operator: int, storages: tuple[int, ...]) -> None:
    """The operator writes over arguments that nobody reads after it."""
    operators = list(program.plan.operators)
    old = operators[operator]
    operators[operator] = replace(old, mutates=(*old.mutates, *storages), recomputable=False)
    program.plan = replace(program.plan, operators=tuple(operators))
    program.overlaid.add(operator)


def _surprises(promised: Tensor, layout: Layout) -> bool:
    """Whether the kernel returns something of another size than the fake one said: hidden, or of another dtype."""
    if layout[0] != promised.dtype:
        return True
    return extent_bytes(promised) == 0 and extent_bytes(Tensor(promised.storage, *layout)) > 0


def _add_workspace(program: Program, operator: int, nbytes: int) -> None:
    plan = program.plan
    old = plan.operators[operator]
    storage = Storage(len(plan.storages), nbytes, "workspace", f"workspace of {old.name}")
    program.workspaces[operator] = storage.id
    operators = list(plan.operators)
    operators[operator] = replace(old, writes=(*old.writes, storage.id))
    program.plan = replace(plan, storages=(*plan.storages, storage), operators=tuple(operators))


def _replace_value(program: Program, value: int, corrected: Tensor) -> None:
    old = program.values[value]
    program.values[value] = corrected
    storages = list(program.plan.storages)
    storages[old.storage] = replace(storages[old.storage], nbytes=extent_bytes(corrected))
    operators = tuple(_with_tensor(op, old, corrected) for op in program.plan.operators)
    program.plan = replace(program.plan, storages=tuple(storages), operators=operators)


def _with_tensor(operator: Operator, old: Tensor, corrected: Tensor) -> Operator:
    if old not in operator.inputs and old not in operator.outputs:
        return operator
    exchange = {old: corrected}
    inputs, outputs = (tuple(exchange.get(t, t) for t in ts) for ts in (operator.inputs, operator.outputs))
    return replace(operator, inputs=inputs, outputs=outputs)


def extent_bytes(tensor: Tensor) -> int:
    """Bytes from the first to the last element of a window; 0 for an empty one."""
    if 0 in tensor.shape:
        return 0
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    return span * int(getattr(torch, tensor.dtype).itemsize)


def layout_of(tensor: torch.Tensor) -> Layout:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tuple(tensor.stride())


def served_indices(
    program: Program, results: Sequence[int | None], tensors: Sequence[torch.Tensor | None], log: Any
) -> tuple[int | None, ...] | None:
    """Which allocations are the results; None if one is not an allocation of its own in the traced layout."""
    served: list[int | None] = []
    for value, tensor in zip(results, tensors, strict=True):
        if value is None or tensor is None or tensor.numel() == 0:
            served.append(None)
            continue
        index = log.index_of(tensor.data_ptr())
        promised = program.values[value]
        if index is None or log.allocations[index].nbytes != tensor.untyped_storage().nbytes():
            return None
        planned_bytes = program.plan.storages[promised.storage].nbytes
        expected = (promised.dtype, promised.shape, promised.strides)
        fits = layout_of(tensor) == expected and log.allocations[index].nbytes == planned_bytes
        if not fits and not _surprises(promised, layout_of(tensor)):
            return None
        served.append(index)
    return tuple(served)


def eager_extra(trait: Trait, scratch_bytes: int, promised_bytes: int) -> tuple[int, int]:
    """What eager's call of the same kernel takes beside its promised results: workspace, and hidden results."""
    real_bytes = sum(extent_bytes(Tensor(-1, *layout)) for layout in trait.layouts if layout is not None)
    copied = bool(trait.layouts) and trait.served is None
    workspace = trait.workspace.nbytes + (0 if copied else scratch_bytes)
    if trait.packing is not None:
        workspace += trait.packing.overlay_bytes + trait.packing.extra_bytes
    return workspace, max(real_bytes - promised_bytes, 0) if trait.layouts else 0
