"""What a worker computes, on any engine: the gradient of one micro-batch.

A micro-batch has a number in the recipe's stream of batches, and nothing else decides its gradient: not the process
that computes it, nor what that process computed before. So the stream of batches has a random state of its own, and the
state before a forward pass is made from the seed and the number alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn, optim
from torch.utils._pytree import tree_leaves

from gradbase.common.errors import GradbaseError, StepError, UsageError

if TYPE_CHECKING:
    from gradbase.compiled import GradientStep

Loss = Callable[[nn.Module, Any], torch.Tensor]
Complete = Callable[[nn.Parameter], None]
_END = object()
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Buffer(Protocol):
    """Where a gradient goes: a tensor, or what takes the gradient of a table by row."""

    def zero_(self) -> Any: ...

    def copy_(self, gradient: torch.Tensor, /) -> Any: ...


class StreamEnded(Exception):
    """There is no such batch: the stream has `length` of them. Its own kind, so that no IndexError within a recipe's
    stream is taken for the end of it.
    """

    def __init__(self, length: int) -> None:
        super().__init__(f"the stream ends after {length} batches")
        self.length = length


@dataclass
class Recipe:
    """What is trained: a fresh model with its optimizer, and how to open its stream of batches."""

    model: nn.Module
    optimizer: optim.Optimizer
    loss: Loss
    batches: Callable[[], Iterable[Any]]
    seed: int
    random_state: torch.Tensor  # of torch's default generator before `batches` is called

    @classmethod
    def build(
        cls,
        seed: int,
        model: Callable[[], nn.Module],
        optimizer: Callable[[nn.Module], optim.Optimizer],
        batches: Callable[[], Iterable[Any]],
        loss: Loss,
    ) -> Recipe:
        """Seed, then call model() and optimizer(model), the order in which every part of gradbase calls them."""
        torch.manual_seed(seed)
        built = model()
        return cls(built, optimizer(built), loss, batches, seed, torch.get_rng_state())


def tables_of(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradients are sparse: of embeddings with sparse=True. They are pushed by row."""
    tables = {id(each.weight) for each in model.modules() if isinstance(each, _EMBEDDINGS) and each.sparse}
    return [name for name, parameter in model.named_parameters() if id(parameter) in tables]


def forward_seed(seed: int, number: int) -> int:
    """The seed of torch's generator before the forward pass of micro-batch `number`: a hash of both."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def samples_of(batch: Any) -> int:
    """How many samples a batch has: the first dimension of its first tensor, 1 if it has none."""
    tensors = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim())
    return next((len(tensor) for tensor in tensors), 1)


class BatchStream:
    """Batches by number, from an iterable that can only be read forward.

    The last `window` batches are kept, for a worker that takes over what another has left; for an older one the
    stream is opened again and read up to it. A list, or whatever else has a length and items, is not read: it is
    looked up. Drawing a batch uses and advances a random state that belongs to the stream. `length`: how many batches
    there are, None if the iterable does not say.
    """

    def __init__(self, open_batches: Callable[[], Iterable[Any]], random_state: torch.Tensor, window: int = 1) -> None:
        self._open = open_batches
        self._first_state = random_state
        self._window = window
        self._rewind()

    def get(self, number: int) -> Any:
        """Batch `number`, counted from 0. Raises StreamEnded when the stream is shorter."""
        if self._items is not None:
            if number >= len(self._items):
                raise StreamEnded(len(self._items))
            with _told("batches()"):
                return self._items[number]
        if number < self._next and number not in self._kept:
            self._rewind()
        while self._next <= number:
            self._draw()
        return self._kept[number]

    def _rewind(self) -> None:
        self._state = self._first_state
        self._kept: dict[int, Any] = {}
        self._next = 0
        with _own_state(self), _told("batches()"):
            batches = self._open()
            if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
                raise UsageError(f"batches() returned {_kind(batches)}", "expected an iterable of batches")
            looked_up = isinstance(batches, Sequence) and not isinstance(batches, (str, bytes))
            self.length = len(batches) if isinstance(batches, Sized) else None
            self._items: Sequence[Any] | None = batches if looked_up else None
            self._feed: Iterator[Any] = iter(()) if looked_up else iter(batches)

    def _draw(self) -> None:
        with _own_state(self), _told("batches()"):
            batch = next(self._feed, _END)
        if batch is _END:
            raise StreamEnded(self._next)
        self._kept[self._next] = batch
        self._kept.pop(self._next - self._window, None)
        self._next += 1


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What fails in a recipe's stream is no end of it, and nothing of the recipe is a mistake of ours."""
    try:
        yield
    except GradbaseError:
        raise
    except Exception as error:
        raise StepError(f"{what} failed: {type(error).__name__}: {_one_line(error)}", *place_of(error)) from error


def _check_norms(model: nn.Module) -> None:
    """A planned step's writes do not show in a tensor's version: those of embeddings are known."""
    for name, module in model.named_modules():
        if isinstance(module, _EMBEDDINGS) and module.max_norm is not None:
            raise _changes(f"{name}.weight" if name else "weight")


def _changes(name: str) -> UsageError:
    problem = f"the loss changes {name} while others read it"
    return UsageError(problem, "leave that to the optimizer: an embedding, say, goes without max_norm")


def _check_loss(loss: Any) -> None:
    """Raise UsageError for what has no gradient."""
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shape = str(tuple(loss.shape)) if isinstance(loss, torch.Tensor) else _kind(loss)
        raise UsageError(f"loss returned {shape}, expected a scalar tensor", "sum or average the loss terms in it")
    if not loss.requires_grad:
        problem = "the loss depends on no parameter that requires a gradient"
        raise UsageError(problem, "check requires_grad and detach()")


def place_of(error: Exception) -> list[str]:
    """The innermost line of the traceback; none where there is no traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"at {os.path.abspath(frames[-1].filename)}:{frames[-1].lineno}"] if frames else []


def _one_line(error: Exception) -> str:
    """A loader's worker tells the traceback before the error: the last line says it."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]} ... {lines[-1].strip()}" if len(lines) > 1 else "".join(lines)


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


class _own_state:
    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._outer = torch.get_rng_state()
        torch.set_rng_state(self._stream._state)

    def __exit__(self, *_: object) -> None:
        self._stream._state = torch.get_rng_state()
        torch.set_rng_state(self._outer)


def _nobody(parameter: nn.Parameter) -> None:
    """Nobody waits for this gradient alone."""


class Figures(NamedTuple):
    """Of a worker's planned step."""

    budget_bytes: int | None
    predicted_peak_bytes: int
    predicted_time_us: float


class Learner:
    """Computes gradients into buffers that are given: one per parameter, such as views of a slab.

    In eager mode a gradient is copied to its buffer, and freed, as soon as autograd has completed it; autograd's own
    way into a preset `.grad` would need the buffer zeroed first, and read, added to and written again.

    With `memory` the forward and backward pass are planned to fit into it (`gradbase.compile_gradients`), at the first
    batch; gradients then have buffers of the process, and are copied from there.

    Either way this happens, and `complete` is told, parameter by parameter while the backward pass still runs.
    """

    def __init__(self, recipe: Recipe, stream: BatchStream, memory: str | int | None = None) -> None:
        self._recipe = recipe
        self._stream = stream
        self._buffers: Mapping[nn.Parameter, Buffer] = {}
        self._missing: set[nn.Parameter] = set()
        self._complete: Complete = _nobody
        self._named = dict(recipe.model.named_parameters())
        self._parameters = [p for p in self._named.values() if p.requires_grad]
        self._tables = {self._named[name] for name in tables_of(recipe.model)}
        self._memory = memory
        self._planned: GradientStep | None = None
        self.told: list[Any] = []  # what the steward knows of the plan
        self._hooks = [p.register_post_accumulate_grad_hook(self._store) for p in self._parameters if memory is None]

    def close(self) -> None:
        """Leave the model as it was: its gradients are its own again, and no buffer is kept."""
        for hook in self._hooks:
            hook.remove()
        self._buffers, self._complete = {}, _nobody
        self._planned = None

    @property
    def figures(self) -> Figures | None:
        """Of the plan; None before the first gradient, and without `memory`."""
        if self._planned is None:
            return None
        plan = self._planned.plan
        return Figures(self._planned.budget_bytes, plan.predicted_peak_bytes, plan.predicted_time_us)

    @property
    def measured_peak_bytes(self) -> int | None:
        """Of all planned steps so far."""
        return None if self._planned is None else self._planned.measured_peak_bytes

    @property
    def length(self) -> int | None:
        """How many micro-batches there are; None if the stream does not say."""
        return self._stream.length

    def batch(self, number: int) -> Any:
        """Micro-batch `number`; StreamEnded after the last."""
        return self._stream.get(number)

    def seek(self, number: int) -> None:
        """Read the stream up to micro-batch `number`, or to its end."""
        with contextlib.suppress(StreamEnded):
            self._stream.get(number)

    def gradient(
        self,
        number: int,
        batch: Any,
        buffers: Mapping[nn.Parameter, Buffer],
        complete: Complete = _nobody,
    ) -> float:
        """The gradient of micro-batch `number` into `buffers`, zeros where the loss does not reach; the loss.

        complete(parameter) is called as soon as that one's gradient is in its buffer.
        """
        self._buffers, self._complete = buffers, complete
        self._missing = set(self._parameters)
        run = self._run_eagerly if self._memory is None else self._run_planned
        loss = run(forward_seed(self._recipe.seed, number), batch)
        for parameter in [p for p in self._parameters if p in self._missing]:
            self._keep(parameter, None)
        return float(loss)

    def _run_eagerly(self, seed: int, batch: Any) -> torch.Tensor:
        torch.default_generator.manual_seed(seed)
        versions = [parameter._version for parameter in self._named.values()]
        loss = self._recipe.loss(self._recipe.model, batch)
        _check_loss(loss)
        self._check_unchanged(versions)
        with _told("the backward pass"):
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _check_unchanged(self, versions: Sequence[int]) -> None:
        """Raise UsageError if the forward pass has written into parameters: others read them at the same moment, and no
        log has it.
        """
        for (name, parameter), version in zip(self._named.items(), versions, strict=True):
            if parameter._version != version:
                raise _changes(name)

    def _run_planned(self, seed: int, batch: Any) -> torch.Tensor:
        if self._planned is None:
            _check_norms(self._recipe.model)
            from gradbase.compiled import compile_gradients

            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
            self._planned = compile_gradients(self._recipe.model, self._recipe.loss, batch, memory=self._memory)
        torch.default_generator.manual_seed(seed)
        return self._planned(batch, on_ready=self._keep_named)

    def _keep_named(self, names: Sequence[str]) -> None:
        for parameter in (self._named[name] for name in names):
            self._keep(parameter, parameter.grad)

    def _store(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        gradient = parameter.grad
        parameter.grad = None
        if gradient.is_sparse and parameter not in self._tables:
            name = next(name for name, each in self._named.items() if each is parameter)
            raise StepError(
                f"the gradient of {name} is sparse, and it is no table of rows",
                "look it up by an nn.Embedding or nn.EmbeddingBag with sparse=True, or make its gradient dense",
            )
        self._keep(parameter, gradient)

    def _keep(self, parameter: nn.Parameter, gradient: torch.Tensor | None) -> None:
        """Put a gradient (None: zeros) where it belongs."""
        buffer = self._buffers[parameter]
        if gradient is None:
            buffer.zero_()
        else:
            whole = gradient.is_sparse and isinstance(buffer, torch.Tensor)
            buffer.copy_(gradient.to_dense() if whole else gradient)
        self._missing.discard(parameter)
        self._complete(parameter)
