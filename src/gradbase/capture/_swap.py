"""Run a module with other tensors in place of its parameters and buffers, and put everything back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def unique_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters and buffers by first qualified name; a tied tensor appears once."""
    return dict(model.named_parameters()), dict(model.named_buffers())


@contextlib.contextmanager
def swapped(model: nn.Module, replacements: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Within the block, each parameter or buffer whose `id` is a key is the given tensor instead.

    Recurrent modules keep a second list of their weights (`_flat_weights`); it is swapped with them.
    """
    undo: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor | None]] = []
    flat: list[tuple[nn.RNNBase, list[torch.Tensor | None]]] = []
    try:
        for child in model.modules():
            for table in (child._parameters, child._buffers):
                for name, tensor in list(table.items()):
                    if tensor is not None and id(tensor) in replacements:
                        undo.append((table, name, tensor))
                        table[name] = replacements[id(tensor)]  # type: ignore[assignment]
            if isinstance(child, nn.RNNBase):
                flat.append((child, child._flat_weights))
                weights = [replacements.get(id(w), w) if w is not None else None for w in child._flat_weights]
                child.__dict__["_flat_weights"] = weights
        yield
    finally:
        for table, name, tensor in undo:
            table[name] = tensor
        for rnn, weights in flat:
            rnn.__dict__["_flat_weights"] = weights
