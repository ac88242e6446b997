"""What eager PyTorch needs for the same step: the yardstick of `--memory 40%`.

The step runs once more on fake tensors, this time through eager autograd, and every storage is counted from
its birth until the last reference to it goes. Kernels' own workspace comes from the statistics.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gradbase.capture._batch import take_apart
from gradbase.capture._modules import user_line
from gradbase.capture._python import undone
from gradbase.capture._swap import swapped, unique_tensors
from gradbase.capture._trace import Loss, _Faker
from gradbase.common.errors import CaptureError

# Bytes of one kernel call beside its results as traced (their sum is the last argument): workspace, and results
# whose size the fake kernel hides.
Extra = Callable[[Any, tuple[Any, ...], dict[str, Any], int], tuple[int, int]]


# What a trace never has, so that a plan would compute otherwise than eager.
_FUSED = {
    torch.ops.aten._transformer_encoder_layer_fwd,
    torch.ops.aten._native_multi_head_attention,
    torch.ops.aten._nested_tensor_from_mask,
}


class _Ledger(TorchDispatchMode):
    """Counts bytes of storages born under the mode, and the highest sum."""

    def __init__(self, known: set[int], extra: Extra) -> None:
        super().__init__()
        self._extra = extra
        self._sizes: dict[int, int] = {}
        self._known = known
        self.live_bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _FUSED:
            raise CaptureError(
                f"a transformer layer runs as one fused kernel, as torch does without gradients: {user_line()}",
                "call torch.backends.mha.set_fastpath_enabled(False) first: it can be traced then, with eager's bits",
            )
        result = func(*args, **(kwargs or {}))
        storages = [t.untyped_storage() for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        workspace, hidden = self._extra(func, args, kwargs or {}, sum(s.nbytes() for s in storages))
        for storage in storages:
            hidden = self._enter(storage, hidden)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + workspace)
        return result

    def _enter(self, storage: torch.UntypedStorage, hidden: int) -> int:
        """Count a storage on first sight. An empty one carries what the kernel hides from the fake."""
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return hidden
        nbytes = storage.nbytes()
        if nbytes == 0:
            nbytes, hidden = hidden, 0
        self._sizes[key] = nbytes
        self.live_bytes += nbytes
        weakref.finalize(storage, self._leave, key)
        return hidden

    def _leave(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)


def eager_peak_bytes(model: nn.Module, loss: Loss, batch: Any, extra: Extra) -> int:
    """Peak bytes of eager's forward, loss and backward above parameters, buffers, state and batch.

    Gradients are included: eager holds all of them until the optimizer steps.
    """
    parameters, buffers = unique_tensors(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _Faker(mode)
    given = take_apart(batch)
    with undone(model), mode, torch.enable_grad():
        own = {id(t): fake(t) for t in parameters.values()}
        held = {id(t): fake.detached(t) for t in buffers.values()}
        inputs = [fake.detached(tensor) for tensor in given.tensors]
        fakes = [*own.values(), *held.values(), *inputs]
        ledger = _Ledger({t.untyped_storage()._cdata for t in fakes}, extra)
        with swapped(model, own | held), ledger:
            loss(model, given.around(inputs)).backward()
    return ledger.peak_bytes
