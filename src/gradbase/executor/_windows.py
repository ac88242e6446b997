"""What generated lines refer to: windows onto tensors, and names for objects."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from gradbase.buffer import Region
from gradbase.capture import Kept


class Windows(Protocol):
    """Where the tensors of one instruction are. Expressions are Python source in the scope's names.

    A packed value is in its frame (`tensor`), and for kernels unpacked in the region (`read`, `frame`).
    """

    def read(self, value: int) -> str: ...
    def write(self, value: int) -> str: ...
    def tensor(self, value: int) -> torch.Tensor: ...
    def frame(self, value: int) -> tuple[int, int]: ...  # address and bytes of the storage a result fills
    def workspace(self) -> int: ...  # address of the operator's workspace
    def kept(self, value: int) -> Kept | None: ...
    def region(self, nbytes: int) -> Region: ...  # at least so large
    def overlaid(self) -> bool: ...  # whether the operator works in the frame of its packed argument


class Scope:
    """Names for objects that generated code refers to."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self._by_id: dict[int, str] = {}

    def bind(self, prefix: str, thing: Any) -> str:
        """The name of an object; the same object gets the same name."""
        if id(thing) not in self._by_id:
            name = f"{prefix}_{len(self.names)}"
            self.names[name] = thing
            self._by_id[id(thing)] = name
        return self._by_id[id(thing)]
