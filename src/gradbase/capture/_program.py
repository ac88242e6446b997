"""From a traced graph to a logical plan, and to what torch needs to run each of its operators."""

from __future__ import annotations

import operator as python_operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from gradbase.capture._python import Assignment
from gradbase.capture._trace import Trace
from gradbase.capture._updates import Tail, TailCalls, append_tail
from gradbase.ir.logical import LogicalPlan, Operator, Phase, Storage, StorageKind, Tensor

aten = torch.ops.aten

# Arguments of which a kernel uses only shape, dtype and device: their contents need not be in memory.
SHAPE_ONLY: dict[Any, tuple[int, ...]] = {
    aten.empty_like.default: (0,),
    aten.zeros_like.default: (0,),
    aten.ones_like.default: (0,),
    aten.full_like.default: (0,),
    aten.rand_like.default: (0,),
    aten.randn_like.default: (0,),
    aten.bernoulli.p: (0,),
    aten.new_zeros.default: (0,),
    aten.new_ones.default: (0,),
    aten.new_empty.default: (0,),
    aten.new_full.default: (0,),
    aten.new_empty_strided.default: (0,),
}
# Functional forms of in-place copies: the first argument is overwritten, not read.
SHAPE_ONLY[aten.copy.default] = (0,)

# In training, batch norm updates its running statistics and its backward pass does not read them.
_RUNNING = {aten.native_batch_norm.default: ((3, 4), 5), aten.native_batch_norm_backward.default: ((3, 4), 7)}

# Row by row kernels: a row is read whole before it is written, so the result may take its argument's frame.
_ROWWISE_INPLACE: dict[Any, tuple[int, ...]] = {
    aten._log_softmax.default: (0,),
    aten._softmax.default: (0,),
    aten._log_softmax_backward_data.default: (0,),
    aten._softmax_backward_data.default: (0,),
}


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor in an operator's arguments: an index into `Program.values`."""

    value: int


@dataclass(frozen=True)
class Call:
    """How torch runs an operator: the overload, its arguments with `Ref`s, and the values it returns (None: unused)."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]

    @property
    def arguments(self) -> list[int]:
        """The values of all tensor arguments, in order."""
        return _refs((*self.args, *self.kwargs.values()))


@dataclass(frozen=True)
class Kept:
    """What of a hidden result is kept between the kernels that know it: runs (offset, bytes) of its `nbytes` bytes.

    The value's window is the runs one after the other; kernels are given all of it, in memory of their own.
    """

    nbytes: int
    runs: tuple[tuple[int, int], ...]


@dataclass
class Program:
    """A logical plan and, aligned with it, what torch needs to run it.

    `values` are tensors (windows onto storages). Operator i is run by `calls[i]`, or as `tail` says. `parameters`
    and `buffers` map names to storages, `constants` storages to tensors; `batch[i]` is the storage of the i-th
    tensor leaf. `workspaces` maps operators to the storage that is their workspace, once statistics have told of one.
    `packed` holds the values that are kept packed, `overlaid` the operators that work in the frame of such an argument.
    `assignments` are what the step does beside: attributes that modules have after it.
    """

    plan: LogicalPlan
    values: list[Tensor]
    calls: dict[int, Call]
    tail: TailCalls
    parameters: dict[str, int]
    buffers: dict[str, int]
    constants: dict[int, torch.Tensor]
    batch: tuple[int, ...]
    loss: int
    workspaces: dict[int, int] = field(default_factory=dict)
    packed: dict[int, Kept] = field(default_factory=dict)
    overlaid: set[int] = field(default_factory=set)
    assignments: tuple[Assignment, ...] = ()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Builder:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.storages: list[Storage] = []
        self.operators: list[Operator] = []
        self.values: list[Tensor] = []
        self.calls: dict[int, Call] = {}
        self.constants: dict[int, torch.Tensor] = {}
        self.of_node: dict[fx.Node, Any] = {}  # node -> value id, or a list of them
        self.storage_of: dict[int, int] = {}  # the fake storage's identity -> storage id
        self.value_ids: dict[Tensor, int] = {}
        self.notes: list[str] = []

    # -- storages and values

    def storage(self, nbytes: int, kind: StorageKind, name: str) -> int:
        self.storages.append(Storage(len(self.storages), nbytes, kind, name))
        return len(self.storages) - 1

    def value(self, fake: torch.Tensor, storage: int) -> int:
        tensor = Tensor(
            storage, dtype_name(fake.dtype), tuple(fake.shape), tuple(fake.stride()), int(fake.storage_offset())
        )
        return self.add_value(tensor)

    def add_value(self, tensor: Tensor) -> int:
        if tensor not in self.value_ids:
            self.value_ids[tensor] = len(self.values)
            self.values.append(tensor)
        return self.value_ids[tensor]

    def external(self, fake: torch.Tensor, kind: StorageKind, name: str) -> int:
        identity = fake.untyped_storage()._cdata
        if identity not in self.storage_of:
            self.storage_of[identity] = self.storage(fake.untyped_storage().nbytes(), kind, name)
        return self.value(fake, self.storage_of[identity])

    def result(self, fake: torch.Tensor, name: str) -> tuple[int, bool]:
        """The value of a kernel's result, and whether its storage was born here (else it is a view)."""
        identity = fake.untyped_storage()._cdata
        born = identity not in self.storage_of
        if born:
            self.storage_of[identity] = self.storage(fake.untyped_storage().nbytes(), "activation", name)
        return self.value(fake, self.storage_of[identity]), born

    # -- nodes

    def placeholders(self, nodes: Sequence[fx.Node]) -> tuple[int, ...]:
        names = [("parameter", n) for n in self.trace.parameters] + [("buffer", n) for n in self.trace.buffers]
        names += [("batch", f"batch[{i}]") for i in range(self.trace.batch_leaves)]
        for node, (kind, name) in zip(nodes, names, strict=True):
            self.of_node[node] = self.external(node.meta["val"], kind, name)  # type: ignore[arg-type]
        return tuple(self.values[self.of_node[n]].storage for n in nodes[len(nodes) - self.trace.batch_leaves :])

    def constant(self, node: fx.Node) -> None:
        tensor = getattr(self.trace.graph, str(node.target))
        value = self.external(tensor, "constant", str(node.target))
        self.constants[self.values[value].storage] = tensor
        self.of_node[node] = value

    def call(self, node: fx.Node) -> None:
        if node.target is python_operator.getitem:
            self.of_node[node] = self.of_node[node.args[0]][node.args[1]]
            return
        fakes = node.meta["val"]
        several = isinstance(fakes, (tuple, list))
        results: list[int | None] = []
        born: list[int] = []
        for fake in fakes if several else (fakes,):
            if not isinstance(fake, torch.Tensor):
                results.append(None)
                continue
            value, new = self.result(fake, node.name)
            results.append(value)
            born += [self.values[value].storage] if new else []
        self.of_node[node] = results if several else results[0]
        if born or node.target is aten.copy_.default:
            self._operator(node, results, tuple(dict.fromkeys(born)))

    def _operator(self, node: fx.Node, results: list[int | None], born: tuple[int, ...]) -> None:
        refs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: Ref(self.of_node[n]))
        args, kwargs = refs
        position = len(self.operators)
        self.calls[position] = Call(node.target, tuple(args), dict(kwargs), tuple(results))
        inputs = self._inputs(node.target, args, kwargs)
        custom = node.meta.get("custom") or {}
        mutates: tuple[int, ...] = ()
        phase: Phase = custom.get("phase", "forward")
        if node.target is aten.copy_.default:
            mutates, phase = (self.values[args[0].value].storage,), "epilogue"
        outputs = tuple(self.values[r] for r in results if r is not None and self.values[r].storage in born)
        self.operators.append(
            Operator(
                id=position,
                name=node.name,
                target=str(node.target),
                reads=tuple(dict.fromkeys([*(t.storage for t in inputs), *mutates])),
                writes=born,
                mutates=mutates,
                inputs=inputs,
                outputs=outputs,
                module=custom.get("module", ""),
                source=custom.get("source", ""),
                phase=phase,
                random=torch.Tag.nondeterministic_seeded in node.target.tags,
                recomputable=not mutates,
                inplace=self._inplace(node.target, args, inputs, outputs),
                signature=signature(node.target, args, kwargs, self.values),
                flops=_flops(node),
                moved_bytes=sum(map(_span_bytes, (*inputs, *outputs))),
            )
        )

    def _inputs(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        skipped = _unread(target, args)
        values = [r for i, a in enumerate(args) if i not in skipped for r in _refs(a)]
        values += [r for a in kwargs.values() for r in _refs(a)]
        return tuple(self.values[v] for v in dict.fromkeys(values))

    def _inplace(
        self, target: Any, args: Sequence[Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> tuple[tuple[int, int], ...]:
        """Pairs where the result may be written over an argument: same window of a storage it fills, read once."""
        if len(outputs) != 1:
            return ()
        if target in _ROWWISE_INPLACE:
            candidates = [self.values[args[i].value] for i in _ROWWISE_INPLACE[target]]
        elif torch.Tag.pointwise in target.tags:
            candidates = list(inputs)
        else:
            return ()
        out = outputs[0]
        uses = Counter(t.storage for t in inputs)
        return tuple(
            (out.storage, t.storage)
            for t in candidates
            if uses[t.storage] == 1
            and (t.dtype, t.shape, t.strides, t.offset) == (out.dtype, out.shape, out.strides, out.offset)
            and self.storages[t.storage].nbytes == self.storages[out.storage].nbytes
            and not self.storages[t.storage].external
        )


def _unread(target: Any, args: Sequence[Any]) -> set[int]:
    """Positions of the arguments whose contents the kernel does not use."""
    if target is aten.convolution_backward.default:
        of_input, of_weight, of_bias = args[10]
        return {i for i, unread in ((1, not (of_weight or of_bias)), (2, not of_input)) if unread}
    if target in _RUNNING and args[_RUNNING[target][1]]:
        return set(_RUNNING[target][0])
    return set(SHAPE_ONLY.get(target, ()))


def _refs(argument: Any) -> list[int]:
    if isinstance(argument, Ref):
        return [argument.value]
    if isinstance(argument, (tuple, list)):
        return [r for a in argument for r in _refs(a)]
    return []


def _span_bytes(tensor: Tensor) -> int:
    """Bytes that a window really touches: an expanded dimension (stride 0) is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        count *= size if stride else 1
    return count * dtype_itemsize(tensor.dtype)


def dtype_itemsize(name: str) -> int:
    dtype: torch.dtype = getattr(torch, name)
    return dtype.itemsize


def _flops(node: fx.Node) -> int:
    packet = getattr(node.target, "overloadpacket", None)
    if packet in flop_registry:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
        return int(flop_registry[packet](*args, **kwargs, out_val=node.meta["val"]))
    fakes = node.meta["val"]
    first = fakes[0] if isinstance(fakes, (tuple, list)) and fakes else fakes
    return int(first.numel()) if isinstance(first, torch.Tensor) else 0


def signature(target: Any, args: Sequence[Any], kwargs: dict[str, Any], values: Sequence[Tensor]) -> str:
    """The catalogue's key: target, and for each argument dtype, shape, strides (if not contiguous) or its value."""
    parts = [_described(a, values) for a in args]
    parts += [f"{k}={_described(a, values)}" for k, a in sorted(kwargs.items())]
    return f"{target}({', '.join(parts)})"


def eager_signature(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """The same key for a call that eager makes, with tensors as arguments."""
    return signature(target, args, kwargs, ())


def _described(argument: Any, values: Sequence[Tensor]) -> str:
    if isinstance(argument, Ref):
        return describe_tensor(values[argument.value])
    if isinstance(argument, torch.Tensor):
        return describe_tensor(Tensor(-1, dtype_name(argument.dtype), tuple(argument.shape), tuple(argument.stride())))
    if isinstance(argument, (tuple, list)):
        return "[" + ", ".join(_described(a, values) for a in argument) + "]"
    return repr(argument)


def describe_tensor(tensor: Tensor) -> str:
    """ "float32[8, 256]", with "@(1, 8)" for strides other than contiguous."""
    text = f"{tensor.dtype}{list(tensor.shape)}"
    return text if tensor.strides == contiguous_strides(tensor.shape) else f"{text}@{tensor.strides}"


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def build_program(trace: Trace, tail: Tail, *, device: str = "cpu") -> Program:
    """The logical plan of a traced step and its tail, and what torch needs to run it."""
    builder = _Builder(trace)
    nodes = list(trace.graph.graph.nodes)
    batch = builder.placeholders([n for n in nodes if n.op == "placeholder"])
    outputs = next(n for n in nodes if n.op == "output").args[0]
    for node in nodes:
        if node.op == "get_attr":
            builder.constant(node)
        elif node.op == "call_function":
            builder.call(node)
    loss = builder.of_node[outputs[0]]
    gradients = {name: builder.of_node[outputs[index]] for name, index in trace.gradients.items()}
    _mark_gradients(builder, gradients.values())
    calls = append_tail(builder, gradients, tail)
    plan = LogicalPlan(
        tuple(builder.storages),
        tuple(_ordered_statistics(builder.operators, builder.calls, builder.values)),
        results=(builder.values[loss].storage,),
        device=device,
        notes=tuple(builder.notes),
    )
    return Program(
        plan=plan,
        values=builder.values,
        calls=builder.calls,
        tail=calls,
        parameters={s.name: s.id for s in builder.storages if s.kind == "parameter"},
        buffers={name: builder.values[builder.of_node[node]].storage for name, node in _buffer_nodes(trace, nodes)},
        constants=builder.constants,
        batch=batch,
        loss=loss,
        assignments=trace.assignments,
    )


def _mark_gradients(builder: _Builder, gradients: Iterable[int]) -> None:
    for value in gradients:
        storage = builder.storages[builder.values[value].storage]
        if not storage.external:
            builder.storages[storage.id] = replace(storage, kind="gradient")


def _buffer_nodes(trace: Trace, nodes: Sequence[fx.Node]) -> list[tuple[str, fx.Node]]:
    first = len(trace.parameters)
    return list(zip(trace.buffers, nodes[first : first + len(trace.buffers)], strict=True))


def _ordered_statistics(
    operators: Sequence[Operator], calls: dict[int, Call], values: Sequence[Tensor]
) -> list[Operator]:
    """Batch norms that share running statistics keep their relative order, like operators that draw numbers.

    Running statistics are updated by the first run only and read by no other operator of the step, so they are
    not among `reads` and `mutates`, and a batch norm may be recomputed.
    """
    touched: Counter[int] = Counter()
    owners: dict[int, int] = {}
    for position, call in calls.items():
        if call.target is aten.native_batch_norm.default and call.args[5] and call.args[3] is not None:
            owners[position] = values[call.args[3].value].storage
            touched[owners[position]] += 1
    return [replace(op, random=True) if touched[owners.get(op.id, -1)] > 1 else op for op in operators]
