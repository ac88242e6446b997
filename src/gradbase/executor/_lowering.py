"""How one operator is run so that its results land in planned frames: the seam between plan and kernels.

A planned operator goes in, lines of Python come out, in which every tensor is a window that exists before the
step. Five ways, tried in this order:

  special   operators that only move, fill or draw: done on the result's window itself (`copy_`, `fill_`, ...)
  out       the kernel has a native out= form
  frames    the kernel allocates its results itself, and the allocator hands it the planned frames
  copied    neither: the kernel's results are copied into their frames, which costs scratch memory and time
  macro     optimizer updates, clipping and accumulation: Python callables

Which one an operator got is part of its statistics (`gradbase catalog "SELECT op, details FROM statistics"`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gradbase.capture import Call, Ref
from gradbase.executor._packing import packing, unpacking
from gradbase.executor._traits import Trait, aligned
from gradbase.executor._windows import Scope, Windows

aten = torch.ops.aten
Way = Literal["special", "out", "frames", "copied"]


@dataclass(frozen=True)
class Lowering:
    """The way an operator is run.

    `served` gives, for "frames", each result's index among the kernel's allocations; `places` the temporaries
    that the allocator puts into the operator's workspace, as (index, bytes, offset), `overlay` those that it puts
    into the frame of a packed result or argument, or behind the others where that is still needed. `packed` is the
    result whose frame that is, None for an argument's.
    """

    way: Way
    target: Any = None
    out_names: tuple[str, ...] = ()
    served: tuple[int | None, ...] = ()
    places: tuple[tuple[int, int, int], ...] = ()
    overlay: tuple[tuple[int, int, int], ...] = ()
    packed: int | None = None

    @property
    def places_bytes(self) -> int:
        return max((aligned(offset + nbytes) for _, nbytes, offset in self.places), default=0)


# Their out= forms compute through the unreduced result, for which they resize what they are given.
_RESIZING = {aten.mse_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default}


def native_out(target: Any) -> tuple[Any, tuple[str, ...]] | None:
    """The out= overload with its own kernel, and the names of its out arguments; None if there is none.

    Overloads that torch generates run the functional form and copy: they are no gain.
    """
    if target in _RESIZING:
        return None
    plain = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        candidate = getattr(target.overloadpacket, name)
        outs = tuple(a.name for a in candidate._schema.arguments if a.is_out)
        rest = [(a.name, str(a.type)) for a in candidate._schema.arguments if not a.is_out]
        if outs and rest == plain and torch.Tag.generated not in candidate.tags:
            return candidate, outs
    return None


def choose(call: Call, trait: Trait | None) -> Lowering:
    """The way to run a call, given what running it once has taught (None: not run yet)."""
    places = trait.workspace.places if trait else ()
    allowed = trait is None or trait.native
    if call.target in _SPECIAL and allowed:
        return Lowering("special", places=places)
    native = native_out(call.target) if allowed else None
    if native is not None and len(native[1]) == len(call.results) and None not in call.results:
        return Lowering("out", native[0], native[1], places=places)
    if trait is not None and trait.served is not None:
        overlay, packed = (trait.packing.overlay, trait.packing.result) if trait.packing else ((), None)
        return Lowering("frames", call.target, served=trait.served, places=places, overlay=overlay, packed=packed)
    return Lowering("copied", call.target, places=places)


def emit(
    call: Call, lowering: Lowering, windows: Windows, scope: Scope, frames: Any, *, again: bool = False
) -> list[str]:
    """Lines that run the call. `again` marks a recomputation: side effects beside the results are left out."""
    emitter = _Emitter(call, windows, scope, again)
    planned = []
    if lowering.way == "special":
        lines = _SPECIAL[call.target](emitter)
    elif lowering.way == "out":
        outs = ", ".join(f"{n}={emitter.out(i)}" for i, n in enumerate(lowering.out_names))
        lines = [f"{scope.bind('op', lowering.target)}({emitter.arguments()}, {outs})"]
    else:
        plain = f"{scope.bind('op', lowering.target)}({emitter.arguments()})"
        lines = [plain] if lowering.way == "frames" else _emit_copied(call, emitter, plain)
        for value, index in zip(call.results, lowering.served, strict=False):
            if value is not None and index is not None:
                planned.append((index, *windows.frame(value)))
    planned += [(index, windows.workspace() + offset, nbytes) for index, nbytes, offset in lowering.places]
    if lowering.overlay:
        base = _overlay(call, lowering, windows)
        planned += [(index, base + offset, nbytes) for index, nbytes, offset in lowering.overlay]
    lines = served_lines(lines, planned, scope, frames, str(call.target))
    return [*unpacking(call, windows, scope), *lines, *packing(call, windows, scope)]


def _overlay(call: Call, lowering: Lowering, windows: Windows) -> int:
    """The address of memory for temporaries that may take the place of a packed result or argument."""
    if lowering.packed is not None:
        result = call.results[lowering.packed]
        assert result is not None
        return windows.tensor(result).data_ptr()
    if not windows.overlaid():
        return windows.workspace() + lowering.places_bytes
    return next(windows.tensor(v).data_ptr() for v in call.arguments if windows.kept(v) is not None)


def served_lines(
    lines: list[str], planned: list[tuple[int, int, int]], scope: Scope, frames: Any, target: str
) -> list[str]:
    """The lines with the allocator armed: the planned (index, address, bytes) are what it hands out."""
    if not planned:
        return lines
    prepared = scope.bind("frames", frames.prepare(sorted(planned)))
    expect, disarm = scope.bind("expect", frames.expect), scope.bind("disarm", frames.disarm)
    missed = scope.bind("missed", _missed)
    return [f"{expect}({prepared})", *lines, f"if {disarm}() != {len(planned)}: {missed}({target!r})"]


def _missed(target: str) -> None:
    raise AssertionError(f"{target} allocated otherwise than when it was measured")


def _emit_copied(call: Call, emitter: _Emitter, plain: str) -> list[str]:
    if len(call.target._schema.returns) == 1 and len(call.results) == 1:
        return [f"{emitter.out(0)}.copy_({plain})"]
    kept = [i for i, value in enumerate(call.results) if value is not None]
    return [f"r = {plain}", *(f"{emitter.out(i)}.copy_(r[{i}])" for i in kept), "del r"]


class _Emitter:
    """Source text for one call's arguments and results."""

    def __init__(self, call: Call, windows: Windows, scope: Scope, again: bool) -> None:
        self.call = call
        self.windows = windows
        self.scope = scope
        self.again = again

    def out(self, index: int = 0) -> str:
        value = self.call.results[index]
        assert value is not None
        return self.windows.write(value)

    def arg(self, index: int) -> str:
        return self.text(self.call.args[index])

    def optional(self, index: int, default: Any) -> str:
        return self.arg(index) if len(self.call.args) > index else self.text(default)

    def arguments(self) -> str:
        parts = [self.text(a) for a in self.call.args]
        if self.call.target is aten.native_batch_norm.default and self.again and self.call.args[5]:
            parts[3:5] = ["None", "None"]  # the first run has updated the running statistics
        parts += [f"{name}={self.text(a)}" for name, a in self.call.kwargs.items()]
        return ", ".join(parts)

    def text(self, argument: Any) -> str:
        if isinstance(argument, Ref):
            return self.windows.read(argument.value)
        if isinstance(argument, (list, tuple)):
            return "[" + ", ".join(self.text(a) for a in argument) + "]"
        if argument is None or isinstance(argument, (bool, int)):
            return repr(argument)
        return self.scope.bind("k", argument)

    def bound(self, thing: Any) -> str:
        return self.scope.bind("op", thing)


Special = Callable[[_Emitter], list[str]]


def _fill(value: Any) -> Special:
    return lambda e: [f"{e.out()}.fill_({e.text(value)})"]


def _fill_from(index: int) -> Special:
    return lambda e: [f"{e.out()}.fill_({e.arg(index)})"]


def _copy_from(index: int) -> Special:
    return lambda e: [f"{e.out()}.copy_({e.arg(index)})"]


def _draw(method: str, *indices: int) -> Special:
    """In-place drawing, as eager does it. Arguments that were left at their default are left out."""
    return lambda e: [f"{e.out()}.{method}({', '.join(e.arg(i) for i in indices if i < len(e.call.args))})"]


def _nothing(emitter: _Emitter) -> list[str]:
    return []


def _scalar(target: Any) -> Special:
    """`x op number` through the tensor form's native out=, which is how eager computes it."""

    def lines(e: _Emitter) -> list[str]:
        alpha = f", alpha={e.arg(2)}" if len(e.call.args) > 2 else ""
        return [f"{e.bound(target)}({e.arg(0)}, {e.arg(1)}{alpha}, out={e.out()})"]

    return lines


def _relu(e: _Emitter) -> list[str]:
    return [f"{e.bound(aten.clamp_min.out)}({e.arg(0)}, 0, out={e.out()})"]


def _masked_fill(e: _Emitter) -> list[str]:
    return [f"{e.out()}.copy_({e.arg(0)})", f"{e.out()}.masked_fill_({e.arg(1)}, {e.arg(2)})"]


def _slice_backward(e: _Emitter) -> list[str]:
    dim, start, end, step = (e.arg(i) for i in (2, 3, 4, 5))
    window = f"{e.bound(aten.slice.Tensor)}({e.out()}, {dim}, {start}, {end}, {step})"
    return [f"{e.out()}.zero_()", f"{window}.copy_({e.arg(0)})"]


def _select_backward(e: _Emitter) -> list[str]:
    return [f"{e.out()}.zero_()", f"{e.out()}.select({e.arg(2)}, {e.arg(3)}).copy_({e.arg(0)})"]


def _batch_norm(e: _Emitter) -> list[str]:
    """The native out= form, which has its own names for what it returns."""
    outs = f"out={e.out(0)}, save_mean={e.out(1)}, save_invstd={e.out(2)}"
    return [f"{e.bound(aten.native_batch_norm.out)}({e.arguments()}, {outs})"]


def _write_back(e: _Emitter) -> list[str]:
    assert isinstance(e.call.args[0], Ref)
    return [f"{e.windows.read(e.call.args[0].value)}.copy_({e.arg(1)})"]


_SPECIAL: dict[Any, Special] = {
    aten.zeros.default: _fill(0),
    aten.ones.default: _fill(1),
    aten.full.default: _fill_from(1),
    aten.zeros_like.default: _fill(0),
    aten.ones_like.default: _fill(1),
    aten.full_like.default: _fill_from(1),
    aten.new_zeros.default: _fill(0),
    aten.new_ones.default: _fill(1),
    aten.new_full.default: _fill_from(2),
    aten.scalar_tensor.default: _fill_from(0),
    aten.empty.memory_format: _nothing,
    aten.empty_strided.default: _nothing,
    aten.empty_like.default: _nothing,
    aten.new_empty.default: _nothing,
    aten.new_empty_strided.default: _nothing,
    aten.clone.default: _copy_from(0),
    aten._to_copy.default: _copy_from(0),
    aten.lift_fresh_copy.default: _copy_from(0),
    aten.copy.default: _copy_from(1),
    aten.copy_.default: _write_back,
    aten.bernoulli.p: _draw("bernoulli_", 1),
    aten.rand.default: _draw("uniform_"),
    aten.rand_like.default: _draw("uniform_"),
    aten.randn.default: _draw("normal_"),
    aten.randn_like.default: _draw("normal_"),
    aten.uniform.default: _draw("uniform_", 1, 2),
    aten.normal_functional.default: _draw("normal_", 1, 2),
    aten.exponential.default: _draw("exponential_", 1),
    aten.add.Scalar: _scalar(aten.add.out),
    aten.sub.Scalar: _scalar(aten.sub.out),
    aten.mul.Scalar: _scalar(aten.mul.out),
    aten.div.Scalar: _scalar(aten.div.out),
    aten.relu.default: _relu,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.native_batch_norm.default: _batch_norm,
}

