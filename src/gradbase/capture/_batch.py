"""A batch as its tensors and the rest: tensors are what a plan is fed with, the rest is what it is made for."""

from __future__ import annotations

import copy
import dataclasses
import enum
import numbers
import os
from collections import UserDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gradbase.common.errors import UsageError

# What a plan may take for granted as long as it is the same: Python has no way to change it.
_FIXED = (numbers.Number, str, bytes, enum.Enum, os.PathLike, type(None), torch.dtype, torch.device)

_Rebuild = Callable[[Iterator[torch.Tensor]], Any]


@dataclass(frozen=True)
class Batch:
    """The tensors of a batch in order, and everything else of it: equal for batches that differ in tensors only."""

    tensors: tuple[torch.Tensor, ...]
    rest: Hashable
    _rebuild: _Rebuild

    def around(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The batch with other tensors."""
        return self._rebuild(iter(tensors))


def take_apart(batch: Any) -> Batch:
    """A batch of containers that torch knows, dataclasses, user dicts and objects with attributes, to any depth.

    Raises UsageError where it holds something else than tensors, numbers and texts: a plan would never see it change.
    """
    leaves, spec = pytree.tree_flatten(batch)
    parts = [_leaf(leaf) for leaf in leaves]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)

    def rebuild(feed: Iterator[torch.Tensor]) -> Any:
        return pytree.tree_unflatten([part._rebuild(feed) for part in parts], spec)

    return Batch(tensors, (spec, *(part.rest for part in parts)), rebuild)


def _leaf(value: Any) -> Batch:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise UsageError(f"the batch holds a tensor of layout {value.layout}", "expected dense ones: to_dense()")
        return Batch((value,), None, next)
    if isinstance(value, _FIXED):
        return Batch((), (type(value), repr(value)), lambda _: value)
    fields, with_fields = _fields(value)
    inner = take_apart(fields)
    return Batch(inner.tensors, (type(value), inner.rest), lambda feed: with_fields(inner._rebuild(feed)))


def _fields(value: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    """What an object holds, and how to make one like it that holds something else."""
    if isinstance(value, UserDict):  # as tokenizers give
        return value.data, lambda data: _with_attributes(value, {"data": data})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names}, lambda fields: _with_attributes(value, fields)
    if getattr(value, "__dict__", None) and not callable(value):
        return vars(value), lambda fields: _with_attributes(value, fields)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UsageError(
        f"the batch holds a {kind}, whose contents a plan would take for constant",
        "make a tensor of it (torch.as_tensor), or leave it out of the batch",
    )


def _with_attributes(value: Any, attributes: dict[str, Any]) -> Any:
    twin = copy.copy(value)
    for name, attribute in attributes.items():
        object.__setattr__(twin, name, attribute)  # frozen dataclasses too
    return twin
