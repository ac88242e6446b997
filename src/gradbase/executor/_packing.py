"""Hidden results of which a kernel touches a part are kept packed.

A recurrent layer asks for a workspace that its backward pass reads, several times as large as what it writes there
(oneDNN's for an LSTM: a third). Eager PyTorch does not notice, as untouched pages take no memory. In an arena every
byte has been touched by somebody, and paging would write them all. So such kernels get the region, address space of
their own, and what they touched is copied into a frame of that size and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch

from gradbase.buffer import Region, Runs, total_bytes
from gradbase.capture import Call, Kept
from gradbase.executor._windows import Scope, Windows

# Copying pays where at least a quarter is left out, of a result that is worth the trouble.
_WORTH_PACKING_BYTES = 1 << 20
_KEPT_SHARE_MAX = 0.75


def pays(nbytes: int, touched: Runs) -> bool:
    """Whether a hidden result of so many bytes is better kept packed."""
    return nbytes >= _WORTH_PACKING_BYTES and total_bytes(touched) <= _KEPT_SHARE_MAX * nbytes


def unpacking(call: Call, windows: Windows, scope: Scope) -> list[str]:
    """Lines that copy packed arguments from their frames to the region."""
    return [
        f"{scope.bind('t', there)}.copy_({scope.bind('t', kept)})"
        for value in dict.fromkeys(call.arguments)
        for there, kept in _pieces(value, windows)
    ]


def packing(call: Call, windows: Windows, scope: Scope) -> list[str]:
    """Lines that copy a result that is kept packed from the region to its frame."""
    values = [value for value in call.results if value is not None]
    return [
        f"{scope.bind('t', kept)}.copy_({scope.bind('t', there)})"
        for value in values
        for there, kept in _pieces(value, windows)
    ]


def unpacked(kept: Kept, region: Region) -> torch.Tensor:
    """What a kernel is given for a packed value."""
    return region.tensor(0, "uint8", (kept.nbytes,), (1,))


def _pieces(value: int, windows: Windows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For every run: where it lies in the region, and in the frame."""
    kept = windows.kept(value)
    if kept is None:
        return
    region, frame = windows.region(kept.nbytes), windows.tensor(value)
    starts = accumulate((nbytes for _, nbytes in kept.runs), initial=0)
    for (offset, nbytes), start in zip(kept.runs, starts, strict=False):
        yield region.tensor(offset, "uint8", (nbytes,), (1,)), frame[start : start + nbytes]
