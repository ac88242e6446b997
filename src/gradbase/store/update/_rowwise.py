"""Adagrad with one accumulator a row instead of one an element, for embedding tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from gradbase.common.errors import UsageError


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad whose accumulator is one number a row: a table of width 64 keeps 1/64 of Adagrad's state.

    For a row with gradient g: s += mean(g * g); row -= lr * g / (sqrt(s) + eps) (Mudigere et al., Software-Hardware
    Co-design for Fast and Scalable Training of Deep Learning Recommendation Models, 2022, section 4.1.4). A row is
    everything at one index of the first dimension; duplicate rows of a sparse gradient are summed first. Takes dense
    and sparse gradients; rows with a gradient of zero stay as they are.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, eps: float = 1e-10, initial_accumulator_value: float = 0.0
    ) -> None:
        if not (lr >= 0 and eps >= 0 and initial_accumulator_value >= 0):
            raise UsageError(f"of lr={lr}, eps={eps} and a sum of {initial_accumulator_value}, one is below 0")
        super().__init__(params, {"lr": lr, "eps": eps, "initial_accumulator_value": initial_accumulator_value})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return value

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["row_sum"] = parameter.new_full(
                parameter.shape[:1], group["initial_accumulator_value"], dtype=accumulator_dtype(parameter.dtype)
            )
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            update_rows(parameter, state["row_sum"], rows, values, group["lr"], group["eps"])
        else:
            rows = gradient.flatten(1).any(dim=1).nonzero().flatten()
            update_rows(parameter, state["row_sum"], rows, gradient[rows], group["lr"], group["eps"])


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums of squares need more than half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def update_rows(
    table: torch.Tensor, row_sum: torch.Tensor, rows: torch.Tensor, gradients: torch.Tensor, lr: float, eps: float
) -> None:
    """Update some rows in place: table [rows, ...], row_sum [rows], rows int64 [n], each once, gradients [n, ...]."""
    flat = gradients.flatten(1).to(row_sum.dtype)
    sums = row_sum[rows].add_(flat.square().mean(dim=1))
    row_sum[rows] = sums
    step = flat.div(sums.sqrt_().add_(eps).unsqueeze(1))
    # Reading the rows, adding and writing them is twice as fast as index_add_ here. In the accumulator's precision the
    # bits of a row do not depend on how many others there are; in half precision they do.
    whole = table.flatten(1)
    changed = whole.index_select(0, rows).to(step.dtype).add_(step, alpha=-lr)
    whole.index_copy_(0, rows, changed.to(table.dtype))
