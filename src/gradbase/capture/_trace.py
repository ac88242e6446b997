"""Trace one training step (forward, loss, backward) into one functional graph.

Two passes. The first runs the user's code once on fake tensors (no memory, no kernels) with autograd inside,
and records every kernel call. The second runs that flat recording through functionalization: in-place
operators become pure ones, and what they did to buffers becomes `copy_` at the end. A pure graph is what
makes recomputing and reordering safe.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from gradbase.capture._batch import take_apart
from gradbase.capture._modules import ModuleStack, user_frame, user_line
from gradbase.capture._python import Assignment, undone
from gradbase.capture._randomness import one_order_of_draws
from gradbase.capture._refined import Refined
from gradbase.capture._swap import swapped, unique_tensors
from gradbase.common.errors import CaptureError, UsageError

Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Trace:
    """A functional graph: placeholders are parameters, buffers, then batch leaves; outputs loss, then gradients.

    `gradients[i]` is the output index of the gradient of the i-th parameter name, for those that get one.
    `assignments` are what the user's Python does to attributes of modules.
    """

    graph: fx.GraphModule
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    batch_leaves: int
    gradients: dict[str, int]
    assignments: tuple[Assignment, ...] = ()


class _NotePlaces(TorchDispatchMode):
    """Tells the module stack of every operator, so that autograd's numbering can be read back later.

    Refuses what a recording of it would leave out.
    """

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self._stack = stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._stack.note()
        _refuse_unseen(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.layout != torch.strided:
            raise CaptureError(
                f"the step makes a tensor of layout {result.layout}: {user_line()}",
                "a plan has dense tensors: use to_dense(), index_add or scatter_add in its place",
            )
        return result


def _refuse_unseen(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise CaptureError(
            f"the step draws from a generator of its own: {user_line()}",
            "leave generator= out, so that it draws from torch's, or pass the numbers with the batch",
        )
    written = args[0] if func._schema.is_mutable and args else None
    if isinstance(written, torch.Tensor) and not isinstance(written, FakeTensor):
        raise CaptureError(
            f"the step changes a tensor in place that is no buffer, parameter or batch: {user_line()}",
            "make it a buffer of a module (register_buffer)",
        )


def trace_step(model: nn.Module, loss: Loss, batch: Any) -> Trace:
    """Trace `loss(model, batch)` and its gradients. Allocates nothing; leaves model, batch and generators alone.

    Raises CaptureError with the user's line where the step depends on data, and UsageError where the loss is
    not a scalar that depends on a parameter.
    """
    parameters, buffers = unique_tensors(model)
    given = take_apart(batch)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _Faker(fake_mode)
    trainable = [name for name, p in parameters.items() if p.requires_grad]
    received: dict[str, int] = {}

    def step(*tensors: torch.Tensor) -> list[torch.Tensor]:
        torch.set_autocast_cache_enabled(True)  # as in eager: a weight that is used twice is cast once
        own = dict(zip(parameters, tensors, strict=False))
        held = dict(zip(buffers, tensors[len(parameters) :], strict=False))
        filled = given.around(tensors[len(parameters) + len(buffers) :])
        ids = {id(parameters[n]): t for n, t in own.items()} | {id(buffers[n]): t for n, t in held.items()}
        memory = {name: _memory(tensor) for name, tensor in (own | held).items()}
        with swapped(model, ids):
            with _NotePlaces(stack), one_order_of_draws():
                value = loss(model, filled)
            _check_loss(value)
            rebound = _rebound_buffers(model, held)
            _refuse_replaced_data(own | held, memory)
            stack.follow_backward(value)
            grads = torch.autograd.grad(value, [own[n] for n in trainable], allow_unused=True)
        result = value.detach()
        if _memory(value) in memory.values():  # the update that follows would change it
            result = result.clone()
        for buffer, tensor in rebound:
            buffer.copy_(tensor)
        return [result, *_accumulated(own, trainable, grads, received)]

    stack = ModuleStack(model)
    originals = (*parameters.values(), *buffers.values(), *given.tensors)
    batch_inputs = [fake.detached(tensor) for tensor in given.tensors]
    shared = {m for m, n in Counter(map(_memory, parameters.values())).items() if n > 1}
    own_inputs = [fake.alone(p) if _memory(p) in shared else fake(p) for p in parameters.values()]
    inputs = [*own_inputs, *map(fake, buffers.values()), *batch_inputs]
    try:
        with undone(model) as effects, _errors_told_once(), fake_mode, stack.recording(), torch.enable_grad():
            recorded = make_fx(step, tracing_mode="real")(*inputs)
    except Exception as error:
        raise _explained(error) from error
    assignments = effects.assignments({id(constant) for constant in (*recorded.buffers(), *recorded.parameters())})
    functional = _functionalize(recorded, inputs, fake_mode)
    names = (*parameters, *buffers, *(f"batch[{i}]" for i in range(len(given.tensors))))
    _refuse_shared_writes(functional, dict(zip(names, originals, strict=True)))
    return Trace(functional, tuple(parameters), tuple(buffers), len(given.tensors), received, assignments)


@contextlib.contextmanager
def _errors_told_once() -> Iterator[None]:
    """Fake kernels log what they also raise."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Faker:
    """Real or meta tensors to fake ones on the device they would live on; aliases stay aliases."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def __call__(self, tensor: torch.Tensor) -> FakeTensor:
        return self.alone(tensor) if tensor.is_meta else self._mode.from_tensor(tensor)

    def alone(self, tensor: torch.Tensor) -> FakeTensor:
        """As if it shared its storage with no other."""
        return self.detached(tensor).requires_grad_(tensor.requires_grad)  # type: ignore[return-value]

    def detached(self, tensor: torch.Tensor) -> FakeTensor:
        """A fake of the same shape and strides on a storage of its own, whatever slice of what it is."""
        device = "cpu" if tensor.is_meta else tensor.device
        with self._mode:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)  # type: ignore[return-value]


def _check_loss(value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UsageError(f"loss returned {shape}, expected a scalar tensor", "sum or average the loss terms in it")
    if value.grad_fn is None:
        raise UsageError(
            "the loss depends on no parameter that requires a gradient", "check requires_grad and detach()"
        )


def _rebound_buffers(model: nn.Module, held: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`self.count = self.count + 1` rebinds a buffer: its old tensor, and the value to write there in the end."""
    known = {id(tensor) for tensor in held.values()}
    now = dict(model.named_buffers())
    rebound = [(old, now[name].detach()) for name, old in held.items() if name in now and now[name] is not old]
    if all(id(now[name]) not in known for name, old in held.items() if now.get(name) is not old):
        return rebound
    return [(old, new.clone()) for old, new in rebound]  # some have changed places


def _refuse_replaced_data(tensors: dict[str, torch.Tensor], memory: dict[str, int]) -> None:
    for name, tensor in tensors.items():
        if _memory(tensor) != memory[name]:
            raise CaptureError(
                f"the step gives {name} other memory (by .data or set_)",
                f"change it in place: with torch.no_grad(): {name}.copy_(...)",
            )


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _accumulated(
    own: dict[str, torch.Tensor],
    trainable: Sequence[str],
    grads: Sequence[torch.Tensor | None],
    received: dict[str, int],
) -> list[torch.Tensor]:
    """Gradients as autograd would leave them in `.grad`: one storage each, in the parameter's layout."""
    outputs: list[torch.Tensor] = []
    seen: set[int] = set()
    for name, grad in zip(trainable, grads, strict=True):
        if grad is None:
            continue
        if grad.layout != torch.strided:
            raise CaptureError(f"the gradient of {name} is sparse", "build its embedding with sparse=False")
        storage = grad.untyped_storage()._cdata
        if storage in seen or grad.stride() != own[name].stride() or grad.untyped_storage().nbytes() != _nbytes(grad):
            grad = torch.empty_like(own[name]).copy_(grad)
        seen.add(storage)
        outputs.append(grad.detach())
        received[name] = len(outputs)
    return outputs


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _functionalize(recorded: fx.GraphModule, inputs: Sequence[torch.Tensor], mode: FakeTensorMode) -> fx.GraphModule:
    def flat(*tensors: torch.Tensor) -> Any:
        return Refined(recorded).run(*tensors)

    pure = torch.func.functionalize(flat, remove="mutations")
    with mode, torch.no_grad(), fx.traceback.preserve_node_meta():
        graph = make_fx(pure, tracing_mode="real")(*(t.detach() for t in inputs))
    graph.graph.eliminate_dead_code(_has_effect)
    return graph


def _refuse_shared_writes(graph: fx.GraphModule, tensors: dict[str, torch.Tensor]) -> None:
    """A step that writes to a tensor would have to show it in another one of the same memory, which it does not."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    written = {node.args[0] for node in graph.graph.nodes if node.target is torch.ops.aten.copy_.default}
    for name, node in zip(tensors, placeholders, strict=True):
        twins = [n for n, t in tensors.items() if n != name and _memory(t) == _memory(tensors[name])]
        if node in written and twins:
            raise CaptureError(
                f"the step changes {name} in place, which shares its memory with {twins[0]}",
                "clone one of them, so that each has memory of its own",
            )


def _has_effect(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or node.target is torch.ops.aten.copy_.default


def _explained(error: Exception) -> Exception:
    """The user's own line for what cannot be traced; anything else as it was."""
    if isinstance(error, (CaptureError, UsageError)):
        return error
    cause: BaseException | None = error
    place = None
    while cause is not None and place is None:
        place = user_frame(cause.__traceback__)
        cause = cause.__cause__
    if _reads_data(error):
        return CaptureError(
            f"the step depends on the data in a tensor: {place or error}",
            "a plan fixes every operator and shape before the run, so Python must not read tensor values",
            "use torch.where or a mask instead of a branch, keep values in tensors instead of .item(), or pad",
        )
    remedies = [f"at {place}"] if place else []
    remedies += [remedy for words, remedy in _REMEDIES.items() if words in str(error)]
    return CaptureError(f"the step failed while it was traced: {type(error).__name__}: {error}", *remedies)


def _reads_data(error: Exception) -> bool:
    name, told = type(error).__name__, str(error)
    if isinstance(error, DynamicOutputShapeException) or "data-dependent" in f"{type(error)} {told}".lower():
        return True
    reads = ("item() on", "Tensor.is_nonzero", "FakeTensor.__format__", ".numpy() is not supported")
    return name.startswith(("DataDependent", "GuardOnDataDependent")) or any(words in told for words in reads)


_REMEDIES = {
    "backward through the graph a second time": "return the loss without calling backward() on it",
    "dynamo-optimized": "give the model as it was before torch.compile: a plan runs kernels of its own choice",
}
