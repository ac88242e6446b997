"""The files and pieces of a store: which page goes where."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbase.store.checkpoint._checkpointer import Source
from gradbase.store.checkpoint._part import Part, owners
from gradbase.store.checkpoint._reading import FLAT, OPTIMIZER, PARAMETERS
from gradbase.store.checkpoint._safetensors import DataFile, Tensor, data_file
from gradbase.store.layout import Layout, Page, TensorSpec
from gradbase.store.machine.messages import CheckpointState

if TYPE_CHECKING:
    import torch

    from gradbase.store.update import Updater, UpdateRule

_STEPS = "steps"
_ROW_SUM = "row_sum"


def store_files(layout: Layout, rule: UpdateRule) -> tuple[DataFile, DataFile]:
    """The parameters' and the optimizer's file of a store; the same for every shard."""
    return _parameters_file(layout), _optimizer_file(layout, rule)


def shard_sources(layout: Layout, updater: Updater) -> list[Source]:
    """What a shard writes of `store_files`: views into the updater's memory; the key of each is its page's number."""
    sources = []
    for page in updater.pages:
        spec = layout.tensors[page.tensor]
        start = page.start * spec.nbytes // max(spec.numel, 1)
        sources.append(Source(PARAMETERS, _stored_name(spec), start, _bytes_of(updater.value(page)), page.number))
        sources += _state_sources(layout, updater, page, spec, start)
        steps = _bytes_of(updater.steps[page.number : page.number + 1])
        sources.append(Source(OPTIMIZER, _STEPS, 8 * page.number, steps, page.number))
    return sources


def shard_owners(shard_count: int) -> list[str]:
    """The members of a store's checkpoints when workers keep no state of their own."""
    return list(owners("shard", shard_count))


def pack_state(state: CheckpointState) -> dict[str, Any]:
    """What a shard's machine says of itself, for a part."""
    return state._asdict()


def unpack_state(part: Part) -> CheckpointState:
    """What `pack_state` was given."""
    state = dict(part.state)
    state["clock"] = tuple(state["clock"])
    state["sessions"] = tuple(state["sessions"])
    state["used"] = tuple((first, last) for first, last in state["used"])
    return CheckpointState(**state)


def _parameters_file(layout: Layout) -> DataFile:
    aliases = {alias: spec.name for spec in layout.tensors for alias in spec.aliases}
    strides = {spec.name: [spec.shape, spec.stride] for spec in layout.tensors if spec.stride is not None}
    metadata = {"format": "pt"}
    if aliases:
        metadata["aliases"] = json.dumps(aliases)
    if strides:
        metadata["strides"] = json.dumps(strides)
    return data_file(PARAMETERS, map(_parameter, layout.tensors), metadata)


def _parameter(spec: TensorSpec) -> Tensor:
    shape = spec.shape if spec.stride is None else (spec.numel,)
    return Tensor(_stored_name(spec), spec.dtype, shape)


def _optimizer_file(layout: Layout, rule: UpdateRule) -> DataFile:
    tensors = [
        Tensor(f"{spec.name}/{key}", *_state_form(spec, key))
        for spec in layout.tensors
        for key in rule.state_keys(spec.name)
    ]
    return data_file(OPTIMIZER, [*tensors, Tensor(_STEPS, "int64", (len(layout.pages),))])


def _state_form(spec: TensorSpec, key: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of a tensor's optimizer state: its own, flat where its order is memory's; one sum a row."""
    if key == _ROW_SUM:
        return ("float64" if spec.dtype == "float64" else "float32"), spec.shape[:1]
    return spec.dtype, spec.shape if spec.stride is None else (spec.numel,)


def _state_sources(layout: Layout, updater: Updater, page: Page, spec: TensorSpec, start: int) -> Iterable[Source]:
    for key, view in updater.state(page).items():
        if key == _ROW_SUM:
            start = page.start // spec.row_numel * view.element_size()
        yield Source(OPTIMIZER, f"{spec.name}/{key}", start, _bytes_of(view), page.number)


def _stored_name(spec: TensorSpec) -> str:
    return spec.name if spec.stride is None else spec.name + FLAT


def _bytes_of(view: torch.Tensor) -> Any:
    """The memory of a contiguous tensor as uint8 [nbytes]; numpy knows neither bfloat16 nor the need for it."""
    import torch

    assert view.is_contiguous()
    if view.numel() == 0:
        return np.zeros(0, np.uint8)
    return view.view(-1).view(torch.uint8).numpy()
