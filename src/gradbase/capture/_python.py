"""What the user's Python does in a step beside calling kernels.

A trace runs it once. Numbers that it reads are then constants of the plan, so a plan holds for these numbers only
(`contents_of`, `numbers_of`). Numbers that a step leaves in attributes of modules are noted, and every planned step
leaves them there too. Tensors that it leaves there for a later step, and numbers drawn by Python's own generators, are
refused.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import functools
import inspect
import pickle
import random
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from types import CodeType, NoneType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gradbase.common.errors import CaptureError

_TABLES = frozenset(vars(nn.Module())) - {"training"}  # what every module has
_PLAIN = frozenset({bool, int, float, complex, str, NoneType, torch.dtype})
_CONTAINERS = (list, dict, set, deque)
_ABSENT = object()


@dataclass(frozen=True)
class Contents:
    """What a model consists of at a moment, in the order of its modules; a module that is used twice counts twice."""

    parameters: list[nn.Parameter]
    buffers: list[torch.Tensor]
    numbers: list[Any]


def contents_of(model: nn.Module) -> Contents:
    """Parameters, buffers and numbers of all modules: called in every step, so by their tables and not by names."""
    tables, todo = [], [model]
    while todo:
        table = vars(todo.pop())
        tables.append(table)
        todo += [child for child in table["_modules"].values() if child is not None]
    return Contents(
        [p for table in tables for p in table["_parameters"].values() if p is not None],
        [b for table in tables for b in table["_buffers"].values() if b is not None],
        [v for table in tables for v in table.values() if type(v) in _PLAIN],
    )


def numbers_of(loss: Callable[..., Any]) -> tuple[Any, ...]:
    """Numbers, flags and texts that a function itself refers to."""
    return tuple([value for value in _references(loss) if type(value) in _PLAIN])


def _references(function: Any) -> Iterator[Any]:
    """What a function refers to: closure, globals by name, defaults, bound arguments, the object it belongs to."""
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        yield from _references(function.func)
        return
    if inspect.ismethod(function):
        yield from vars(function.__self__).values()
        function = function.__func__
    code = getattr(function, "__code__", None)
    if code is None:
        yield from getattr(function, "__dict__", {}).values()
        return
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield cell.cell_contents
    yield from map(function.__globals__.get, _globals_read(code))
    yield from function.__defaults__ or ()


@functools.lru_cache(maxsize=256)
def _globals_read(code: CodeType) -> tuple[str, ...]:
    """Names of globals alone: a code's other names are attributes."""
    return tuple(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"))


@dataclass(frozen=True)
class Assignment:
    """An attribute of a module that a step sets."""

    module: nn.Module
    name: str
    value: Any

    def __call__(self) -> None:
        _put(vars(self.module), self.name, self.value)


@dataclass(frozen=True)
class _Change:
    """An attribute, or the contents of one, that the user's code changed."""

    place: str
    module: nn.Module
    name: str
    old: Any
    new: Any

    @property
    def leaves_tensors(self) -> bool:
        return _has_tensors(self.new)


@dataclass
class Effects:
    """What the user's code did, once its block has ended."""

    changes: list[_Change] = field(default_factory=list)
    drew: str = ""

    def assignments(self, constants: Collection[int]) -> tuple[Assignment, ...]:
        """What every step has to do again. `constants`: the `id`s of the tensors that the trace took for constant.

        A tensor that is made anew before it is read may be left. Raises CaptureError for the others, and for numbers
        from a generator that is not torch's.
        """
        if self.drew:
            raise CaptureError(
                f"the step draws numbers from {self.drew}, which a plan would repeat for ever",
                "draw them by torch (torch.rand, ...), or before the step and pass them with the batch",
            )
        for change in self.changes:
            made_anew = isinstance(change.old, torch.Tensor) and id(change.old) not in constants
            if change.leaves_tensors and not made_anew:
                raise _carried(change)
        return tuple(Assignment(c.module, c.name, c.new) for c in self.changes if not c.leaves_tensors)


def _carried(change: _Change) -> CaptureError:
    return CaptureError(
        f"the step leaves a tensor in {change.name} of {change.place or 'the model'}: {_line(change)}",
        "what a later step reads has to be a buffer: register_buffer in __init__, and assign to it in forward",
        "if it is for you to look at, let forward return it, or copy it to such a buffer",
    )


def _line(change: _Change) -> str:
    """Where forward sets the attribute, or where forward is."""
    try:
        lines, first = inspect.getsourcelines(type(change.module))
        file = inspect.getsourcefile(type(change.module))
    except (OSError, TypeError):
        return type(change.module).__qualname__
    pattern = re.compile(rf"\.{re.escape(change.name)}\b\s*(=[^=]|\.)|register_buffer\(.{re.escape(change.name)}.")
    found = [number for number, line in enumerate(lines) if pattern.search(line)]
    number = found[-1] if found else 0
    return f"{file}:{first + number}: {lines[number].strip()}"


@contextlib.contextmanager
def undone(model: nn.Module) -> Iterator[Effects]:
    """The user's code runs inside; afterwards modules and Python's generators are as they were."""
    before = [(name, _Attributes(module)) for name, module in model.named_modules()]
    generators = _Generators()
    effects = Effects()
    try:
        yield effects
    finally:
        effects.changes = [change for place, attributes in before for change in attributes.put_back(place)]
        effects.drew = generators.put_back()


class _Attributes:
    """Attributes and buffers of one module as they are now, and copies of lists and the like."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = {k: v for k, v in vars(module).items() if k not in _TABLES}
        self._buffers = set(module._buffers)
        self._contents = {k: copy.copy(v) for k, v in self._values.items() if type(v) in _CONTAINERS}

    def put_back(self, place: str) -> Iterator[_Change]:
        module, now = self._module, vars(self._module)
        for name in [n for n in {**self._values, **now} if n not in _TABLES]:
            old, new = self._values.get(name, _ABSENT), now.get(name, _ABSENT)
            if old is not new:
                _put(now, name, old)
                if not (type(old) in _PLAIN and type(old) is type(new) and old == new):
                    yield _Change(place, module, name, old, new)
        for name, kept in self._contents.items():
            contents = self._values[name]
            if not _same_contents(contents, kept):
                if _has_tensors(contents):
                    yield _Change(place, module, name, kept, copy.copy(contents))
                _refill(contents, kept)
        for name in set(module._buffers) - self._buffers:
            yield _Change(place, module, name, _ABSENT, module._buffers.pop(name))


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _put(table: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        del table[name]
    else:
        table[name] = value


def _same_contents(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(left[key] is right[key] for key in left)
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def _refill(container: Any, kept: Any) -> None:
    container.clear()
    container.extend(kept) if isinstance(container, (list, deque)) else container.update(kept)


class _Generators:
    """Python's global generators, and numpy's where it is imported."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = _numpy_random()
        self._numpys = self._numpy.get_state() if self._numpy else None

    def put_back(self) -> str:
        """Which of them was drawn from, "" if none was."""
        drew = ""
        if random.getstate() != self._python:
            random.setstate(self._python)
            drew = "Python's random"
        if self._numpy and pickle.dumps(self._numpy.get_state()) != pickle.dumps(self._numpys):
            self._numpy.set_state(self._numpys)
            drew = "numpy.random"
        return drew


def _numpy_random() -> Any:
    return getattr(sys.modules.get("numpy"), "random", None)
