"""The optimizer state of a store, to and from what the user's optimizer saves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.layout import Layout, Page, TensorSpec, flatten
from gradbase.store.update._rule import UpdateRule
from gradbase.store.update._updater import Updater


def state_dict_of(
    updaters: Sequence[Updater], optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> dict[str, Any]:
    """What `optimizer.state_dict()` would be, had it applied the store's updates itself.

    `updaters` hold all pages between them. Feed the result to `optimizer.load_state_dict`. Tensors never updated have
    no state, as in torch. Under ASP the pages of one tensor may have seen different numbers of updates; its "step" is
    the most.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    saved = optimizer.state_dict()
    saved["state"] = {}
    owners = _owners(updaters)
    pairs = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    for plain, group in pairs:
        for index, parameter in zip(plain["params"], group["params"], strict=True):
            state = _gather(names[id(parameter)], owners, updaters[0].layout)
            if state:
                saved["state"][index] = state
    return saved


def load_state_dict(
    updaters: Iterable[Updater], saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> None:
    """Fill the pages that `updaters` hold from a state that `optimizer.state_dict()` gave."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    indices = {
        names[id(parameter)]: index
        for plain, group in zip(saved["param_groups"], optimizer.param_groups, strict=True)
        for index, parameter in zip(plain["params"], group["params"], strict=True)
    }
    for updater in updaters:
        for page in updater.pages:
            spec = updater.layout.tensors[page.tensor]
            state = saved["state"].get(indices.get(spec.name))
            if state:
                _check_here(updater.rule, spec.name)
                _scatter(updater, page, spec, state)


def _check_here(rule: UpdateRule, name: str) -> None:
    if name in rule.directed:
        raise UsageError(
            f"the optimizer state of {name} is not with the store: its gradients go through a codec of directions",
            "use a codec of gradients, as in topk:0.01:60:gradients, where the optimizer's state is wanted",
        )


def _owners(updaters: Sequence[Updater]) -> dict[int, Updater]:
    return {page.number: updater for updater in updaters for page in updater.pages}


def _gather(name: str, owners: Mapping[int, Updater], layout: Layout) -> dict[str, torch.Tensor]:
    spec, pages = layout.spec(name), layout.of_tensor(name)
    missing = [page.number for page in pages if page.number not in owners]
    if missing:
        raise StoreError(f"page {missing[0]} of {name} is on none of the shards given", "give all shards' updaters")
    rule = owners[pages[0].number].rule if pages else None
    if rule is not None:
        _check_here(rule, name)
    step = max((int(owners[page.number].steps[page.number]) for page in pages), default=0)
    if rule is None or not (step or _starts_filled(rule, name)):
        return {}
    state: dict[str, torch.Tensor] = {}
    if rule.settings(name)["optimizer"] not in _STEPLESS:  # type: ignore[index]
        state["step"] = torch.tensor(float(step))
    for key in rule.state_keys(name):
        flat = torch.cat([owners[page.number].state(page)[key] for page in pages])
        state[key] = flat if key == "row_sum" else _shaped(flat, spec)
    return state


_STEPLESS = ("SGD", "RowwiseAdagrad")


def _starts_filled(rule: UpdateRule, name: str) -> bool:
    """Adagrad has state before its first update."""
    settings = rule.settings(name)
    return settings is not None and settings["optimizer"] in ("Adagrad", "RowwiseAdagrad")


def _shaped(flat: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)


def _scatter(updater: Updater, page: Page, spec: TensorSpec, state: Mapping[str, Any]) -> None:
    for key, view in updater.state(page).items():
        if key == "row_sum":
            first = updater.layout.first_row(page)
            view.copy_(state[key][first : first + view.numel()])
        else:
            view.copy_(flatten(spec, state[key])[page.start : page.start + page.numel])
    # SGD saves no count; a momentum buffer that is there was updated at least once.
    updater.steps[page.number] = int(state.get("step", 1))
