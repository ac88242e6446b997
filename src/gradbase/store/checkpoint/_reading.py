"""Checkpoints as those see them who take none: verify them, and put tensors together."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbase.common.errors import DamageError
from gradbase.store.checkpoint._checkpointer import damaged_piece
from gradbase.store.checkpoint._checksum import checksum
from gradbase.store.checkpoint._part import Checkpoint, FilePart, Part
from gradbase.store.checkpoint._safetensors import Tensor, read_header
from gradbase.store.files import File, Files
from gradbase.store.layout import ITEM_BYTES

PARAMETERS, OPTIMIZER = "parameters.safetensors", "optimizer.safetensors"
FLAT = "#memory"  # behind the name of a tensor that is stored in the order of memory


@dataclass(frozen=True)
class Verified:
    """What `verify` looked at."""

    files: int
    pieces: int
    nbytes: int


def verify(files: Files, checkpoint: Checkpoint) -> Verified:
    """Check every checksum of a checkpoint. Raises DamageError at the first that is wrong."""
    seen: set[str] = set()
    pieces = nbytes = 0
    for part in checkpoint.parts.values():
        for name, listed in part.files.items():
            seen.add(name)
            for _, length in _checked_pieces(files, f"{checkpoint.path}/{name}", listed):
                pieces, nbytes = pieces + 1, nbytes + length
    for name in seen:
        _check_covered(files, checkpoint, name)
    return Verified(len(seen), pieces, nbytes)


def read_parameters(files: Files, checkpoint: Checkpoint) -> Iterator[tuple[Tensor, bytes]]:
    """Every tensor of the model's state dict under all of its names, with its bytes in the usual order.

    Contents are checked by `verify`, not here. Raises StoreError if the file is none.
    """
    path = f"{checkpoint.path}/{PARAMETERS}"
    file = files.open(path)
    try:
        tensors, metadata = read_header(file, path)
        strides: Mapping[str, Any] = json.loads(metadata.get("strides", "{}"))
        names = _names(tensors, metadata)
        for name, stored in names.items():
            tensor, offset = tensors[stored]
            data = file.read(offset, tensor.nbytes)
            shape = tensor.shape
            if stored.endswith(FLAT):
                shape, stride = map(tuple, strides[stored.removesuffix(FLAT)])
                data = in_order(data, tensor.dtype, shape, stride)
            yield Tensor(name, tensor.dtype, shape), data
    finally:
        file.close()


def state_of(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    """The state that each owner's machine had, by owner."""
    return {owner: part.state for owner, part in sorted(checkpoint.parts.items())}


def _checked_pieces(files: Files, path: str, listed: FilePart) -> Iterator[tuple[int, int]]:
    try:
        file = files.open(path)
    except FileNotFoundError as error:
        raise DamageError(f"{path} is missing", "restore it from a copy", path=path, offset=0) from error
    try:
        first = min((piece.offset for piece in listed.pieces), default=0)
        if listed.pieces and not _header_is(file, first, listed.header_crc):
            raise damaged_piece(path, 0)
        for piece in listed.pieces:
            data = np.frombuffer(file.read(piece.offset, piece.nbytes), np.uint8)
            if len(data) != piece.nbytes or checksum(data) != piece.checksum:
                raise damaged_piece(path, piece.offset)
            yield piece.offset, piece.nbytes
    finally:
        file.close()


def _header_is(file: File, first: int, crc: int) -> bool:
    length = int.from_bytes(file.read(0, 8), "little") + 8
    return length <= first and zlib.crc32(file.read(0, length)) == crc


def _check_covered(files: Files, checkpoint: Checkpoint, name: str) -> None:
    """All parts of a complete checkpoint together hold every byte of its files once."""
    path = f"{checkpoint.path}/{name}"
    file = files.open(path)
    try:
        tensors, _ = read_header(file, path)
        end = min((offset for _, offset in tensors.values()), default=0)
        for piece in sorted(_pieces(checkpoint.parts.values(), name)):
            if piece[0] != end:
                raise damaged_piece(path, end)
            end += piece[1]
        if tensors and end != max(offset + tensor.nbytes for tensor, offset in tensors.values()):
            raise damaged_piece(path, end)
    finally:
        file.close()


def _pieces(parts: Any, name: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    part: Part
    for part in parts:
        if name in part.files:
            found += [(piece.offset, piece.nbytes) for piece in part.files[name].pieces if piece.nbytes]
    return found


def _names(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    """Every name of the state dict, and the name it is stored under."""
    names = {stored.removesuffix(FLAT): stored for stored in tensors}
    aliases: Mapping[str, str] = json.loads(metadata.get("aliases", "{}"))
    return names | {alias: names[name] for alias, name in aliases.items()}


def in_order(data: bytes, dtype: str, shape: Sequence[int], stride: Sequence[int]) -> bytes:
    """A tensor's bytes in the order of memory, as those of the same tensor row by row."""
    item = ITEM_BYTES[dtype]
    assert math.prod(shape) * item == len(data)
    flat = np.frombuffer(data, np.dtype(f"V{item}"))
    ordered: bytes = np.lib.stride_tricks.as_strided(flat, shape, [step * item for step in stride]).tobytes()
    return ordered
