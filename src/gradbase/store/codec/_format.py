"""The header of an encoded page; README.md has the bytes."""

from __future__ import annotations

import struct
from typing import NamedTuple

from gradbase.common.errors import StoreError
from gradbase.store.layout import ITEM_BYTES

HEADER = struct.Struct("<BBHIQQ")
VERSION = 2
_FIRST_VERSION = 1  # had another body for topk, and the same ones otherwise
CODECS = ("none", "bf16", "int8", "topk", "onebit")
_DTYPES = tuple(ITEM_BYTES)


class Header(NamedTuple):
    """What is encoded and how; `extra` is elements a scale, or elements kept."""

    codec: str
    dtype: str
    extra: int
    numel: int
    nbytes: int


def pack_header(codec: str, dtype: str, extra: int, numel: int, nbytes: int) -> bytes:
    """The first 24 bytes of a message, for a body of `nbytes`."""
    return HEADER.pack(CODECS.index(codec), _DTYPES.index(dtype), VERSION, extra, numel, nbytes)


def read_header(head: memoryview, nbytes: int) -> Header:
    """The header of a message whose body has `nbytes`."""
    if len(head) != HEADER.size:
        raise damaged(f"{len(head)} bytes are no header")
    codec, dtype, version, extra, numel, promised = HEADER.unpack(head)
    if codec >= len(CODECS) or dtype >= len(_DTYPES):
        raise damaged(f"it names codec {codec} and dtype {dtype}, which do not exist")
    if version != VERSION and (version != _FIRST_VERSION or CODECS[codec] == "topk"):
        raise damaged(f"it is {CODECS[codec]} of format version {version}, this program reads {VERSION}")
    if promised != nbytes:
        raise damaged(f"its header promises {promised} bytes, {nbytes} follow")
    return Header(CODECS[codec], _DTYPES[dtype], extra, numel, nbytes)


def damaged(why: str) -> StoreError:
    return StoreError(f"this is no encoded page: {why}", "it was damaged on its way, or the peer runs another program")
