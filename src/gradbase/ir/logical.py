"""The logical plan: what one training step computes, before anything is decided about memory.

A step is a list of *operators* over *storages*. A storage is one allocation; tensors are windows onto
storages (shape, strides, offset), so views cost nothing and share their storage's fate. Operators are pure:
each writes storages of its own, except where `mutates` says that it changes an existing one (a parameter
and its optimizer state in an update, a buffer, gradients that are clipped). Operators stand in the order in
which eager PyTorch runs them; `reads`, `writes` and `mutates` say which other orders are legal.

Everything here is frozen, hashable and free of torch, so plans can be built, searched and printed on a
machine that has neither torch nor the memory for the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# Where a storage comes from. External storages exist before the step; a workspace is what a kernel needs beside
# its results while it runs.
StorageKind = Literal[
    "parameter", "buffer", "state", "accumulator", "batch", "constant", "activation", "gradient", "workspace"
]
EXTERNAL_KINDS = frozenset({"parameter", "buffer", "state", "accumulator", "batch", "constant"})

# forward and loss, backward, clip (a barrier over all gradients), update (one optimizer update), epilogue.
Phase = Literal["forward", "backward", "clip", "update", "epilogue"]


@dataclass(frozen=True, slots=True)
class Storage:
    """One allocation of `nbytes` bytes. `id` is its index in `LogicalPlan.storages`."""

    id: int
    nbytes: int
    kind: StorageKind
    name: str  # a parameter's or buffer's qualified name, a state's "exp_avg of NAME", else the operator's name

    @property
    def external(self) -> bool:
        return self.kind in EXTERNAL_KINDS


@dataclass(frozen=True, slots=True)
class Tensor:
    """A window onto a storage: shape and strides in elements, `offset` in elements, dtype as "float32"."""

    storage: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Operator:
    """One call of a kernel, or one macro-operator (an optimizer update, a clip). `id` is its position.

    `reads`: storages whose *contents* are needed (an argument of which only the shape matters is not read).
    `writes`: storages born here. `mutates`: storages changed in place (also listed in `reads`).
    `inplace`: pairs (written storage, read storage) of equal size where the kernel may write its result over
    its argument if the argument is not needed later.
    `random`: draws from the generator. Random operators keep their relative order, and a recomputation
    replays the numbers of the first run.
    `recomputable`: False for updates, clips and whatever changes or escapes the step.
    `signature` keys the catalogue: target, dtypes, shapes, strides where they matter, other arguments.
    `flops` and `moved_bytes` feed the roofline: arithmetic operations, and bytes read plus written.
    """

    id: int
    name: str
    target: str  # "aten.addmm.default", "gradbase.update.AdamW"
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    mutates: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    module: str = ""  # qualified module name, "" for the root
    source: str = ""  # "model.py:41", the user's line
    phase: Phase = "forward"
    random: bool = False
    recomputable: bool = True
    inplace: tuple[tuple[int, int], ...] = ()
    signature: str = ""
    flops: int = 0
    moved_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LogicalPlan:
    """One step. `results` are storages that must be resident when the step ends (the loss)."""

    storages: tuple[Storage, ...]
    operators: tuple[Operator, ...]
    results: tuple[int, ...] = ()
    device: str = "cpu"
    notes: tuple[str, ...] = field(default=())  # what the user should know: "clip_grad_norm holds every gradient"
