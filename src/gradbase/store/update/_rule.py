"""What a server applies to a page, as plain data: read from the user's torch.optim optimizer, sent as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gradbase.common.errors import StoreError, UsageError

if TYPE_CHECKING:
    import torch

    Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]

Settings = dict[str, Any]  # of one parameter group: "optimizer", then numbers, booleans, None, and betas as a tuple

_COMMON = ("lr", "weight_decay", "maximize")
_ENGINES = ("foreach", "fused")
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "SGD": (*_COMMON, *_ENGINES, "momentum", "dampening", "nesterov"),
    "Adam": (*_COMMON, *_ENGINES, "betas", "eps", "amsgrad", "decoupled_weight_decay"),
    "AdamW": (*_COMMON, *_ENGINES, "betas", "eps", "amsgrad", "decoupled_weight_decay"),
    "Adagrad": (*_COMMON, *_ENGINES, "lr_decay", "eps", "initial_accumulator_value"),
    "RowwiseAdagrad": ("lr", "eps", "initial_accumulator_value"),
}


@dataclass(frozen=True)
class UpdateRule:
    """The optimizer of a store: the settings of each parameter group, and which tensor is in which.

    A tensor that `group_of` does not name is not trained: its pages are assigned, never updated. Of a tensor in
    `directed` workers push Adam's direction and not the gradient: they have the moments, and the server has no state.
    """

    groups: tuple[Settings, ...]
    group_of: Mapping[str, int]
    directed: frozenset[str] = frozenset()

    def settings(self, name: str) -> Settings | None:
        """The settings of a tensor's group; None if it is not trained."""
        group = self.group_of.get(name)
        return None if group is None else self.groups[group]

    def state_keys(self, name: str) -> tuple[str, ...]:
        """The optimizer state that a tensor has, by torch's names, each of the tensor's size."""
        settings = self.settings(name)
        if settings is None or name in self.directed:
            return ()
        return _STATE[settings["optimizer"]](settings)

    @property
    def all_state_keys(self) -> tuple[str, ...]:
        """The state keys of all tensors."""
        return tuple(dict.fromkeys(key for name in self.group_of for key in self.state_keys(name)))

    def costs(self) -> dict[str, float]:
        """Bytes moved to update one byte of each tensor: the gradient is read; value and state are read and written."""
        return {name: 3.0 + 2.0 * len(self.state_keys(name)) for name in self.group_of}

    def can_direct(self, name: str) -> bool:
        """Whether a worker can find the tensor's direction: by Adam, from nothing but its own gradients."""
        settings = self.settings(name)
        if settings is None or settings["optimizer"] not in ("Adam", "AdamW") or settings["amsgrad"]:
            return False
        return bool(settings["decoupled_weight_decay"]) or not settings["weight_decay"]

    def with_directed(self, names: Iterable[str]) -> UpdateRule:
        """The same rule with these tensors, which `can_direct`, in `directed`."""
        directed = frozenset(names)
        if wrong := sorted(name for name in directed if not self.can_direct(name)):
            raise StoreError(f"workers cannot find the direction in which {wrong[0]!r} is to go")
        return replace(self, directed=directed)

    def with_settings(self, groups: tuple[Settings, ...]) -> UpdateRule:
        """The same rule with other numbers, such as the learning rate of the next step."""
        if len(groups) != len(self.groups):
            raise UsageError(
                f"settings for {len(groups)} parameter groups, the store has {len(self.groups)}",
                "parameter groups are fixed when a store is made; add none afterwards",
            )
        rule = replace(self, groups=tuple(_checked(settings["optimizer"], settings) for settings in groups))
        if any(rule.state_keys(name) != self.state_keys(name) for name in self.group_of):
            raise UsageError(
                "the new settings need optimizer state that the store does not hold",
                "momentum and amsgrad can change in value, not be switched on or off later",
            )
        if wrong := sorted(name for name in self.directed if not self._directs_alike(rule, name)):
            raise UsageError(
                f"the new settings change the direction of {wrong[0]}, which workers find by the old ones",
                "leave betas, eps and coupled weight decay as they were",
            )
        return rule

    def _directs_alike(self, other: UpdateRule, name: str) -> bool:
        settings, new = self.settings(name), other.settings(name)
        assert settings is not None and new is not None
        return other.can_direct(name) and all(settings[key] == new[key] for key in ("betas", "eps"))

    def to_json(self) -> dict[str, Any]:
        directed = {"directed": sorted(self.directed)} if self.directed else {}
        return {"groups": list(self.groups), "group_of": dict(self.group_of), **directed}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> UpdateRule:
        """Read a rule as `to_json` wrote it; StoreError if it is none."""
        try:
            groups = tuple(_checked(str(settings["optimizer"]), settings) for settings in data["groups"])
            group_of = {str(name): int(group) for name, group in data["group_of"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"this is no update rule of a store ({type(error).__name__}: {error})") from error
        if not all(0 <= group < len(groups) for group in group_of.values()):
            raise StoreError("an update rule names a parameter group that it does not have")
        return UpdateRule(groups, group_of).with_directed(map(str, data.get("directed", ())))


def rule_of(optimizer: Optimizers, model: torch.nn.Module) -> UpdateRule:
    """Read a user's optimizer over a model's parameters, or several over parts of them.

    Raises UsageError, with what to use instead, for optimizers and options that a server cannot apply page by page.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    group_of: dict[str, int] = {}
    number = 0
    for one in _several(optimizer):
        for group in one.param_groups:
            for parameter in group["params"]:
                name = _name_of(parameter, names, type(one).__name__)
                if name in group_of:
                    raise UsageError(f"two optimizers train {name}", "give each parameter to one of them")
                if parameter.requires_grad:
                    group_of[name] = number
            number += 1
    return UpdateRule(settings_of(optimizer), group_of)


def settings_of(optimizer: Optimizers) -> tuple[Settings, ...]:
    """The settings of each parameter group as they are now: what a learning rate schedule changes is in them."""
    return tuple(_checked(_kind_of(one), group) for one in _several(optimizer) for group in one.param_groups)


def _several(optimizer: Optimizers) -> Sequence[torch.optim.Optimizer]:
    return optimizer if isinstance(optimizer, Sequence) else (optimizer,)


def _name_of(parameter: torch.Tensor, names: Mapping[int, str], kind: str) -> str:
    if id(parameter) not in names:
        raise UsageError(
            f"{kind} has a tensor of shape {list(parameter.shape)} that the model lacks",
            "make the optimizer from model.parameters()",
        )
    return names[id(parameter)]


def _kind_of(optimizer: torch.optim.Optimizer) -> str:
    import torch

    from gradbase.store.update._rowwise import RowwiseAdagrad

    supported = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, RowwiseAdagrad)
    kind = type(optimizer)
    if kind not in supported:
        raise UsageError(
            f"a store cannot apply {kind.__module__}.{kind.__qualname__} page by page",
            f"use torch.optim.{', '.join(cls.__name__ for cls in supported[:-1])}, or "
            "gradbase.store.update.RowwiseAdagrad for embedding rows",
        )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UsageError(
            f"{kind.__name__} has step hooks, which would run on no server",
            "remove them, or do their work in the training loop",
        )
    return kind.__name__


def _checked(optimizer: str, group: Mapping[str, Any]) -> Settings:
    """The settings of one group, tensors as numbers; UsageError for what only runs on the user's own tensors."""
    if optimizer not in SETTINGS:
        raise StoreError(f"a store has no optimizer called {optimizer!r}", f"it has {', '.join(SETTINGS)}")
    for option in ("differentiable", "capturable"):
        if group.get(option):
            raise UsageError(f"{option}=True of {optimizer} cannot be had on a server", f"set {option}=False")
    plain = {key: _plain(optimizer, key, group.get(key)) for key in SETTINGS[optimizer]}
    return {"optimizer": optimizer, **plain}


def _plain(optimizer: str, key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    numbers = [float(number) for number in (value if isinstance(value, (tuple, list)) else (value,))]
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{key} of {optimizer} is {value}", "give a finite number")
    return tuple(numbers) if key == "betas" else numbers[0]


def _adam_state(settings: Settings) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if settings["amsgrad"] else ("exp_avg", "exp_avg_sq")


_STATE: Mapping[str, Callable[[Settings], tuple[str, ...]]] = {
    "SGD": lambda settings: ("momentum_buffer",) if settings["momentum"] else (),
    "Adam": _adam_state,
    "AdamW": _adam_state,
    "Adagrad": lambda settings: ("sum",),
    "RowwiseAdagrad": lambda settings: ("row_sum",),
}
