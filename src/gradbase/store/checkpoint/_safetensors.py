"""Where the bytes of a safetensors file lie, known before it is written."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradbase.common.errors import StoreError
from gradbase.store.files import BLOCK_BYTES, File, align_up
from gradbase.store.layout import ITEM_BYTES

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_NAMES = {short: name for name, short in DTYPES.items()}
_HEADER_BYTES_MAX = 100_000_000  # what the safetensors library takes
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. dtype: torch's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class DataFile:
    """A safetensors file: its name, tensors and metadata; `header` and `offsets` follow from these."""

    name: str
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """The first byte of each tensor in the file."""
        return {name: len(self.header) + offset for name, offset in self._places.items()}

    @cached_property
    def nbytes(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def header(self) -> bytes:
        """All bytes before the first tensor. Raises StoreError for what safetensors cannot hold."""
        entries: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        for tensor in self.tensors:
            start = self._places[tensor.name]
            entries[tensor.name] = {
                "dtype": _short(tensor),
                "shape": list(tensor.shape),
                "data_offsets": [start, start + tensor.nbytes],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        padded = align_up(_LENGTH.size + len(text)) - _LENGTH.size
        return _LENGTH.pack(padded) + text.ljust(padded)

    @cached_property
    def header_crc(self) -> int:
        return zlib.crc32(self.header)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Offsets behind the header: whole blocks first, then by alignment, so that every tensor is aligned."""
        places, end = {}, 0
        for tensor in sorted(self.tensors, key=_order):
            places[tensor.name] = end
            end += tensor.nbytes
        assert len(places) == len(self.tensors), "two tensors of a file have the same name"
        return places


def read_header(file: File, path: str) -> tuple[dict[str, tuple[Tensor, int]], dict[str, str]]:
    """Tensors with the offsets of their first bytes, and metadata. Raises StoreError if this is no safetensors file."""
    try:
        (length,) = _LENGTH.unpack(file.read(0, _LENGTH.size))
        if length > _HEADER_BYTES_MAX:
            raise ValueError(f"a header of {length} bytes")
        entries = json.loads(file.read(_LENGTH.size, length))
        metadata = entries.pop("__metadata__", {})
        start = _LENGTH.size + length
        return {name: _tensor_of(name, entry, start) for name, entry in entries.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise StoreError(f"{path} is not a safetensors file: {error}", "verify the store") from error


def data_file(name: str, tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> DataFile:
    return DataFile(name, tuple(tensors), dict(metadata or {}))


def _tensor_of(name: str, entry: Mapping[str, Any], start: int) -> tuple[Tensor, int]:
    first, last = entry["data_offsets"]
    tensor = Tensor(name, _NAMES[entry["dtype"]], tuple(entry["shape"]))
    if last - first != tensor.nbytes or first < 0:
        raise ValueError(f"tensor {name!r} takes {last - first} bytes, its shape {tensor.nbytes}")
    return tensor, start + first


def _order(tensor: Tensor) -> tuple[int, int]:
    return (0 if tensor.nbytes % BLOCK_BYTES == 0 else 1, -ITEM_BYTES[tensor.dtype])


def _short(tensor: Tensor) -> str:
    if tensor.dtype not in DTYPES:
        raise StoreError(
            f"tensor {tensor.name!r} has dtype {tensor.dtype}, which safetensors does not know",
            f"a checkpoint holds {', '.join(DTYPES)}",
        )
    return DTYPES[tensor.dtype]
