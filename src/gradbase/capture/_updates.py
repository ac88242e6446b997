"""The tail of a step: clip, accumulate, update, as macro-operators on the logical plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradbase.capture._optimizer import UpdateShape
from gradbase.ir.logical import Operator, Phase

if TYPE_CHECKING:
    from gradbase.capture._program import _Builder

# Biases and norms: too small to matter for memory, so many that calling the optimizer for each would cost time.
_SMALL_BYTES = 64 * 1024
_GROUP_BYTES = 512 * 1024
_GROUP_COUNT = 32


@dataclass(frozen=True)
class Update:
    """One optimizer update (or accumulation): parameter names, and the value that is each one's gradient."""

    names: tuple[str, ...]
    gradients: tuple[int, ...]


@dataclass(frozen=True)
class Tail:
    """What follows the backward pass.

    `separable`: each parameter may be updated alone. `clip`: a barrier that scales all gradients by their
    global norm. `accumulate`: add gradients to accumulators; `update`: and then step the optimizer.
    """

    optimizer: str
    shapes: Mapping[str, UpdateShape]
    separable: bool = True
    clip: bool = False
    accumulate: bool = False
    update: bool = True


@dataclass(frozen=True)
class TailCalls:
    """Operator ids of the tail: the updates, the accumulations, and the clip if there is one.

    `clipped` is what the clip scales; `states` maps a state's storage to (parameter name, key in the state).
    """

    updates: dict[int, Update]
    accumulations: dict[int, Update]
    clip: int | None
    clipped: Update
    states: dict[int, tuple[str, str]]


def append_tail(builder: _Builder, gradients: Mapping[str, int], tail: Tail) -> TailCalls:
    """Append the tail's operators to the builder. `gradients` maps parameter names to values."""
    groups = list(_groups(builder, gradients, tail.separable))
    accumulations: dict[int, Update] = {}
    if tail.accumulate:
        gradients, accumulations = _append_accumulations(builder, gradients, groups)
    clip = _append_clip(builder, gradients) if tail.clip and tail.update else None
    updates = {}
    for names in groups if tail.update else ():
        updates[len(builder.operators)] = Update(names, tuple(gradients[n] for n in names))
        _append_update(builder, names, gradients, tail)
    if not tail.separable:
        builder.notes.append(f"{tail.optimizer} may mix parameters: one update at the end holds every gradient")
    states = {s.id: _split(s.name) for s in builder.storages if s.kind == "state"}
    return TailCalls(updates, accumulations, clip, Update(tuple(gradients), tuple(gradients.values())), states)


def _split(name: str) -> tuple[str, str]:
    key, _, parameter = name.partition(" of ")
    return parameter, key


def _groups(builder: _Builder, gradients: Mapping[str, int], separable: bool) -> Iterator[tuple[str, ...]]:
    """Parameters that are updated together: large ones alone, small ones in the order their gradients come."""
    if not separable:
        yield tuple(gradients)
        return
    born = {s: op.id for op in builder.operators for s in op.writes}
    small: list[str] = []
    held_bytes = 0
    for name in sorted(gradients, key=lambda n: born.get(builder.values[gradients[n]].storage, -1)):
        nbytes = builder.storages[builder.values[gradients[name]].storage].nbytes
        if nbytes >= _SMALL_BYTES:
            yield (name,)
            continue
        small.append(name)
        held_bytes += nbytes
        if len(small) == _GROUP_COUNT or held_bytes >= _GROUP_BYTES:
            yield tuple(small)
            small, held_bytes = [], 0
    if small:
        yield tuple(small)


def _append_accumulations(
    builder: _Builder, gradients: Mapping[str, int], groups: Sequence[Sequence[str]]
) -> tuple[dict[str, int], dict[int, Update]]:
    accumulators: dict[str, int] = {}
    calls: dict[int, Update] = {}
    for names in groups:
        for name in names:
            grad = builder.values[gradients[name]]
            storage = builder.storage(builder.storages[grad.storage].nbytes, "accumulator", f"gradient of {name}")
            accumulators[name] = builder.add_value(replace(grad, storage=storage))
        calls[len(builder.operators)] = Update(tuple(names), tuple(gradients[n] for n in names))
        storages = [builder.values[accumulators[n]].storage for n in names]
        reads = [builder.values[gradients[n]].storage for n in names]
        _append(builder, "accumulate", names, (*reads, *storages), storages, "update", moved=3, flops=1)
    builder.notes.append("gradients of several calls are accumulated: one accumulator a parameter stays in memory")
    # In the order of the gradients, which is the parameters': a norm over all of them depends on it.
    return {name: accumulators[name] for name in gradients}, calls


def _append_clip(builder: _Builder, gradients: Mapping[str, int]) -> int:
    storages = [builder.values[v].storage for v in gradients.values()]
    builder.notes.append("clipping by global norm holds every gradient until the last one is there")
    _append(builder, "clip", tuple(gradients), storages, storages, "clip", moved=3, flops=3)
    return len(builder.operators) - 1


def _append_update(builder: _Builder, names: Sequence[str], gradients: Mapping[str, int], tail: Tail) -> None:
    owned = [s.id for s in builder.storages if s.kind == "parameter" and s.name in set(names)]
    states = _states(builder, names, tail.shapes)
    grads = [builder.values[gradients[n]].storage for n in names]
    _append(builder, f"update.{tail.optimizer}", names, (*grads, *owned, *states), (*owned, *states), "update")
    operator = builder.operators[-1]
    moved = sum(tail.shapes[n].moved_bytes for n in names)
    flops = sum(tail.shapes[n].flops for n in names)
    builder.operators[-1] = replace(operator, moved_bytes=moved, flops=flops)


def _states(builder: _Builder, names: Sequence[str], shapes: Mapping[str, UpdateShape]) -> list[int]:
    """A large parameter's state tensors are storages of their own, which may rest on disk; the others stay."""
    alone = _whole_states(builder, names[0], shapes[names[0]]) if len(names) == 1 else {}
    storages = [builder.storage(nbytes, "state", f"{key} of {names[0]}") for key, nbytes in alone.items()]
    nbytes = sum(sum(shapes[n].state.values()) for n in names) - sum(alone.values())
    several = f"state of {len(names)} parameters, {names[0]} first"
    return [*storages, builder.storage(nbytes, "buffer", several)] if nbytes else storages


def _whole_states(builder: _Builder, name: str, shape: UpdateShape) -> dict[str, int]:
    """State that has an element for each of the parameter's, so that its home is laid out like the parameter."""
    nbytes = next((s.nbytes for s in builder.storages if s.kind == "parameter" and s.name == name), None)
    return {key: each for key, each in shape.state.items() if each == nbytes}


def _append(
    builder: _Builder,
    action: str,
    names: Sequence[str],
    reads: Sequence[int],
    mutates: Sequence[int],
    phase: Phase,
    moved: int = 0,
    flops: int = 0,
) -> None:
    unique = tuple(dict.fromkeys(reads))
    nbytes = sum(builder.storages[s].nbytes for s in mutates)
    sizes = ", ".join(str(builder.storages[s].nbytes) for s in unique[:64])
    builder.operators.append(
        Operator(
            id=len(builder.operators),
            name=f"{action.split('.')[0]}_{len(builder.operators)}",
            target=f"gradbase.{action}",
            reads=unique,
            writes=(),
            mutates=tuple(dict.fromkeys(mutates)),
            module=names[0].rpartition(".")[0] if len(names) == 1 else "",
            phase=phase,
            recomputable=False,
            signature=f"gradbase.{action}({len(names)}: {sizes})",
            flops=flops * nbytes // 4,
            moved_bytes=moved * nbytes,
        )
    )
