"""Kernels of a recording in forms that suit a plan, and that give eager's bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# Correctly rounded, whether a kernel's vector loop computes an element or its scalar one.
_EXACT = {
    getattr(aten, name + suffix)
    for name in (
        *("abs", "add", "ceil", "clamp", "clamp_max", "clamp_min", "copy", "div", "eq", "fill", "floor", "ge", "gt"),
        *("le", "lt", "masked_fill", "mul", "ne", "neg", "reciprocal", "relu", "round", "sign", "sqrt", "sub"),
        *("threshold", "where", "zero"),
    )
    for suffix in ("", "_")
    if hasattr(aten, name + suffix)
}

# Two vectors of 512 bits: what a vector loop takes at a time. Of rows that are a multiple it leaves nothing over.
_STRIDE_BYTES = 128


class Refined(fx.Interpreter):
    """Runs a recording inside functionalization, which loses some of what eager's kernels depend on."""

    def run_node(self, n: fx.Node) -> Any:
        self._recorded = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is aten.bernoulli_.float and not args[0].is_contiguous():
            return _in_memory_order(*args)
        if target is aten.convolution_backward.default:
            return _one_gradient_at_a_time(*args)
        if target is aten.native_batch_norm.default and args[5] and not self._is_input(3):
            return _with_statistics_read_later(*args)
        # A window of a frame has no bit that says "conjugated" or "negated".
        if target is aten._conj.default:
            return aten.conj_physical.default(*args) if _is_tensor(args) else args[0].conjugate()
        if target is aten._neg_view.default:
            return aten.neg.default(*args) if _is_tensor(args) else -args[0]
        if torch.Tag.pointwise in getattr(target, "tags", ()) and not _is_exact(target, kwargs):
            return self._pointwise(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def _is_input(self, position: int) -> bool:
        """Whether an argument is a parameter, a buffer or a batch, as it is when the step begins; or None."""
        argument = self._recorded.args[position]
        return not isinstance(argument, fx.Node) or argument.op == "placeholder"

    def _pointwise(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with its arguments in rows where eager has rows.

        Eager works in place on a slice, row after row, and the end of each row takes the scalar loop, whose exponential
        is not the vector loop's. Functionalization gives the slice a tensor of its own, without ends of rows.
        """
        recorded = [a.meta.get("val") if isinstance(a, fx.Node) else a for a in self._recorded.args]
        laid = [_in_rows(a, r) if isinstance(a, torch.Tensor) else a for a, r in zip(args, recorded, strict=True)]
        result = super().call_function(target, tuple(laid), kwargs)
        if target._schema.is_mutable and laid[0] is not args[0]:
            return args[0].copy_(result)
        return result


def _is_tensor(args: tuple[Any, ...]) -> bool:
    """Not a number: what a recording makes of a constant without dimensions."""
    return isinstance(args[0], torch.Tensor)


def _is_exact(target: Any, kwargs: dict[str, Any]) -> bool:
    """Adding a multiple rounds once in the vector loop, where such an instruction is, and twice in the scalar one."""
    return target.overloadpacket in _EXACT and kwargs.get("alpha", 1) == 1


def _in_rows(tensor: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it with a gap after each row if eager's has gaps where it has none."""
    whole = tensor.dim() == 0 or tensor.size(-1) * tensor.element_size() % _STRIDE_BYTES == 0
    is_dense = aten.is_non_overlapping_and_dense
    if whole or is_dense(recorded) or not is_dense(tensor):
        return tensor
    return aten.constant_pad_nd(tensor, [0, 1]).narrow(-1, 0, tensor.size(-1))


def _in_memory_order(noise: torch.Tensor, probability: float) -> torch.Tensor:
    """Dropout's noise in its own layout, which functionalization would make contiguous.

    Eager draws into `empty_like(x)` in the order of its memory, so a transposed layout gets other numbers.
    """
    order = sorted(range(noise.dim()), key=lambda d: (-noise.stride(d), d))
    drawn = aten.bernoulli.p(noise.permute(order), probability)
    return drawn.permute([order.index(d) for d in range(noise.dim())])


def _with_statistics_read_later(*args: Any) -> Any:
    """Batch norm whose running statistics are no buffers but a part or a copy of some, as instance norm has.

    The kernel does not declare that it changes them, which is left to itself where nothing else of a step reads them.
    """
    output, mean, spread, *statistics = aten._native_batch_norm_legit_functional.default(*args)
    for old, new in zip(args[3:5], statistics, strict=True):
        old.copy_(new)
    return output, mean, spread


def _one_gradient_at_a_time(*args: Any) -> list[torch.Tensor | None]:
    """A convolution's weight gradient, then its input's: the image need not be in memory for the second.

    One call of the kernel computes them one after the other anyway (oneDNN, cuDNN), while holding all five tensors.
    """
    *rest, (of_input, of_weight, of_bias) = args
    backward = aten.convolution_backward.default
    parameters = backward(*rest, [False, of_weight, of_bias]) if of_weight or of_bias else (None, None, None)
    image = backward(*rest, [True, False, False])[0] if of_input else None
    return [image, *parameters[1:]]
