"""Recipes: a Python file that says what to train, and nothing of how.

    def model() -> torch.nn.Module: ...
    def batches() -> Iterable[Any]: ...                    # a batch: any pytree of tensors
    def loss(model, batch) -> torch.Tensor: ...            # a scalar
    def optimizer(model) -> torch.optim.Optimizer: ...

It may also set `clip_grad_norm` (a number: gradients are clipped to this global norm) and `accumulate` (a whole
number: gradients of so many batches are summed for one update), and define `scheduler(optimizer)`, which returns a
learning-rate scheduler that is stepped after every update (ReduceLROnPlateau with the loss of the last batch).
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn, optim

from gradbase.common.errors import GradbaseError, UsageError

_SIGNATURES = {
    "model": "def model() -> torch.nn.Module",
    "batches": "def batches() -> Iterable[batch]",
    "loss": "def loss(model, batch) -> torch.Tensor",
    "optimizer": "def optimizer(model) -> torch.optim.Optimizer",
}
_ARGUMENTS = {"model": 0, "batches": 0, "loss": 2, "optimizer": 1, "scheduler": 1}


@dataclass(frozen=True)
class Recipe:
    """The functions and settings of one recipe file, checked as far as they can be without calling them."""

    path: Path
    model: Callable[[], nn.Module]
    batches: Callable[[], Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    optimizer: Callable[[nn.Module], optim.Optimizer]
    scheduler: Callable[[optim.Optimizer], Any] | None = None
    clip_grad_norm: float | None = None
    accumulate: int = 1

    def blamed(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Exceptions out of the recipe's own code become UsageErrors with its file, line and message."""
        return _blamed(self.path, what)


@dataclass
class Job:
    """A recipe that was started: the objects that train. `batches` yields the first batch too."""

    recipe: Recipe
    model: nn.Module
    optimizer: optim.Optimizer
    scheduler: Any
    first: Any
    batches: Iterator[Any]

    def updated(self, step: int) -> bool:
        """Whether parameters are updated in step `step`, counted from 1."""
        return step % self.recipe.accumulate == 0

    def schedule(self, loss: float) -> None:
        """Step the scheduler, if there is one; the one that waits for a plateau is told the loss.

        Raises UsageError when it fails, as one that is made for fewer steps does.
        """
        if self.scheduler is None:
            return
        waits = isinstance(self.scheduler, optim.lr_scheduler.ReduceLROnPlateau)
        try:
            self.scheduler.step(*([loss] if waits else []))
        except Exception as error:
            kind = type(self.scheduler).__name__
            problem = f"the {kind} of {self.recipe.path} failed: {type(error).__name__}: {_one_line(error)}"
            raise UsageError(problem, "expected a scheduler that can be stepped after every update") from error


def load_recipe(path: Path) -> Recipe:
    """Load a recipe file. Its folder stays on sys.path, as with `python FILE`, so that it can import beside itself.

    Raises UsageError when there is no such file, when it is not Python, fails while it is imported, or does not
    define the four functions.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UsageError(f"there is no recipe at {path}", "expected a Python file, such as examples/gpt_stdlib.py")
    if path.suffix != ".py":
        raise UsageError(f"{path} is not a Python file", "expected a recipe whose name ends in .py")
    path = path.resolve()
    module = _imported(path)
    functions = {name: _function(module, name, path) for name in _SIGNATURES}
    scheduler = _function(module, "scheduler", path) if hasattr(module, "scheduler") else None
    clip, accumulate = _settings(module, path)
    return Recipe(path, **functions, scheduler=scheduler, clip_grad_norm=clip, accumulate=accumulate)


def start(recipe: Recipe, seed: int, *, meta: bool = False) -> Job:
    """Seed, then call model(), optimizer(model) and batches(), in this order, and draw the first batch.

    `meta` builds the model on the meta device, where it has shapes and no memory, and the first batch too if its
    code allows that. Raises UsageError when one of them fails or returns something else than it must.
    """
    torch.manual_seed(seed)
    model = build_model(recipe, meta)
    optimizer = build_optimizer(recipe, model)
    scheduler = _scheduler(recipe, optimizer)
    first, rest = _first_batch(recipe, meta)
    return Job(recipe, model, optimizer, scheduler, first, _batches(recipe, first, rest))


def build_model(recipe: Recipe, meta: bool = False) -> nn.Module:
    """Call model(). Raises UsageError when it fails or returns something else."""
    device = torch.device("meta") if meta else contextlib.nullcontext()
    with recipe.blamed("model() on the meta device" if meta else "model()"), device:
        model = recipe.model()
    if not isinstance(model, nn.Module):
        raise _wrong(recipe, "model()", model, "a torch.nn.Module")
    return model


def build_optimizer(recipe: Recipe, model: nn.Module) -> optim.Optimizer:
    """Call optimizer(model). Raises UsageError when it fails or returns something else."""
    with recipe.blamed("optimizer(model)"):
        optimizer = recipe.optimizer(model)
    if not isinstance(optimizer, optim.Optimizer):
        raise _wrong(recipe, "optimizer(model)", optimizer, "a torch.optim.Optimizer")
    return optimizer


def _scheduler(recipe: Recipe, optimizer: optim.Optimizer) -> Any:
    if recipe.scheduler is None:
        return None
    with recipe.blamed("scheduler(optimizer)"):
        scheduler = recipe.scheduler(optimizer)
    if not callable(getattr(scheduler, "step", None)):
        raise _wrong(recipe, "scheduler(optimizer)", scheduler, "a torch.optim.lr_scheduler, or what has its step()")
    return scheduler


def _first_batch(recipe: Recipe, meta: bool) -> tuple[Any, Iterator[Any]]:
    """The first batch and an iterator over the others."""
    if meta:
        with contextlib.suppress(Exception), torch.device("meta"):  # what needs values cannot run there
            feed = iter(recipe.batches())
            return next(feed), feed
    with recipe.blamed("batches()"):
        batches = recipe.batches()
        try:
            feed = iter(batches)
        except TypeError:
            raise _wrong(recipe, "batches()", batches, "an iterable of batches") from None
        for first in feed:
            return first, feed
    raise UsageError(f"batches() of {recipe.path} yields nothing", "expected at least one batch")


def _batches(recipe: Recipe, first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    del first
    with recipe.blamed("batches()"):
        yield from rest


def _wrong(recipe: Recipe, call: str, value: object, expected: str) -> UsageError:
    kind = type(value).__name__ if value is not None else "None"
    return UsageError(f"{call} of {recipe.path} returned {kind}", f"expected {expected}")


def _imported(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_recipe"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a name that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module  # dataclasses, and pickles of a loader's workers, look their module up
    try:
        with _blamed(path, "import"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    missing = [wanted for wanted in _SIGNATURES if not hasattr(module, wanted)]
    if missing:
        names = ", ".join(f"{wanted}()" for wanted in missing)
        raise UsageError(f"{path} defines no {names}", f"expected {'; '.join(_SIGNATURES.values())}")
    function = getattr(module, name)
    if not callable(function) or isinstance(function, nn.Module):
        kind, signature = type(function).__name__, _SIGNATURES.get(name, "def scheduler(optimizer)")
        raise UsageError(f"{name} in {path} is a {kind}, not a function", f"expected {signature}")
    _check_arguments(function, name, path)
    return function  # type: ignore[no-any-return]


def _check_arguments(function: Callable[..., Any], name: str, path: Path) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables do not tell
        return
    try:
        signature.bind(*[None] * _ARGUMENTS[name])
    except TypeError:
        expected = _SIGNATURES.get(name, "def scheduler(optimizer)")
        raise UsageError(f"{name}{signature} in {path} takes other arguments", f"expected {expected}") from None


def _settings(module: ModuleType, path: Path) -> tuple[float | None, int]:
    clip, accumulate = getattr(module, "clip_grad_norm", None), getattr(module, "accumulate", 1)
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or not clip > 0):
        raise UsageError(f"clip_grad_norm in {path} is {clip!r}", "expected a number above zero, or leave it out")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise UsageError(f"accumulate in {path} is {accumulate!r}", "expected a whole number of at least 1")
    return clip, accumulate


@contextlib.contextmanager
def _blamed(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except GradbaseError:
        raise
    except SyntaxError as error:
        problem = f"{what} of {path.name} failed: {error.msg}"
        raise UsageError(problem, f"at {error.filename}:{error.lineno}: {(error.text or '').strip()}") from error
    except SystemExit as error:
        raise UsageError(f"{what} of {path.name} called sys.exit({error.code!r})", _place(error, path)) from error
    except Exception as error:
        place = _place(error, path)
        if not place:
            raise
        problem = f"{what} of {path.name} failed: {type(error).__name__}: {_one_line(error)}"
        raise UsageError(problem, place) from error


def _place(error: BaseException, path: Path) -> str:
    """The innermost line of the recipe's folder that an exception passed through, "" if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user(frame.filename, path)]
    return f"at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _is_user(filename: str, path: Path) -> bool:
    file = Path(filename)
    return file.is_relative_to(path.parent) and "site-packages" not in file.parts


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    first, _, more = text.partition("\n")
    return f"{first} ..." if more else first
