"""Updates as the bytes of a log record: what was applied, as it is or through codecs that give exactly it back.

Gradients that went through a lossy codec are applied as decoded, so the decoded ones are what a physical record has to
hold. They are few different numbers, and take as few bytes again as they took on their way.

    codec 1  RAW      lanes in order, of each the bytes of every page of the shard in the layout's order
    codec 2  ENCODED  the same order; of each page a length (4 bytes, little-endian) and a message (codec/README.md)

A page is a gradient, or for a tensor that is not trained its new value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradbase.common.errors import StoreError

if TYPE_CHECKING:
    import torch

    from gradbase.store.codec import Codec, Message
    from gradbase.store.layout import Layout, Page

RAW, ENCODED = 1, 2

_LENGTH = struct.Struct("<I")


def encoded_update(
    layout: Layout, shard: int, codecs: Mapping[int, Codec], pushes: Sequence[Any]
) -> tuple[int, list[Any]]:
    """The codec of a record and the buffers that follow each other in it, for pushes as they are applied.

    pushes: of every lane the bytes of every page of the shard, decoded. codecs: by page number, what a page went
    through; one that its codec does not give back bit for bit, or that is not named, is logged as it is. Such buffers
    may be the pushes' own memory.
    """
    pages = layout.of_shard(shard)
    if not any(page.number in codecs for page in pages):
        return RAW, list(pushes)
    buffers: list[Any] = []
    for push in pushes:
        for page, values in zip(pages, _pages_in(layout, pages, push), strict=True):
            message = _message(codecs.get(page.number), values)
            buffers += (_LENGTH.pack(message.nbytes), message.head, message.body)
    return ENCODED, buffers


def raw_update(layout: Layout, shard: int, codec: int, data: memoryview) -> memoryview:
    """The update of a record as RAW, whatever it was logged as. Raises StoreError for one of another model."""
    if codec == RAW:
        return data
    if codec != ENCODED:
        raise StoreError(f"a logged update has codec {codec}", "use the gradbase that wrote the log")
    pages = layout.of_shard(shard)
    decoded: list[bytes] = []
    while data:
        for page in pages:
            values, data = _decoded(layout, page, data)
            decoded.append(values)
    return memoryview(b"".join(decoded))


def _pages_in(layout: Layout, pages: Sequence[Page], push: Any) -> Iterator[torch.Tensor]:
    """The pages in a push, each flat and of its own dtype."""
    import torch

    view = memoryview(push).cast("B")
    memory = torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)
    offset = 0
    for page in pages:
        part = memory[offset : offset + page.nbytes]
        dtype: torch.dtype = getattr(torch, layout.tensors[page.tensor].dtype)
        # A view of another dtype must start on a multiple of its size, which pages of a push need not do.
        yield (part.clone() if offset % dtype.itemsize else part).view(dtype)
        offset += page.nbytes
    assert offset == len(memory), f"a push of {len(memory)} bytes, its pages take {offset}"


def _message(codec: Codec | None, page: torch.Tensor) -> Message:
    """A page through its codec if that gives back the same bits, else as it is."""
    from gradbase.store.codec import Codec, encode, encode_again

    message = None if codec is None else encode_again(codec, page)
    return encode(Codec(), page) if message is None else message


def _decoded(layout: Layout, page: Page, data: memoryview) -> tuple[bytes, memoryview]:
    """The bytes of the page that `data` begins with, and what follows it."""
    import torch

    from gradbase.store.codec import decode, split

    nbytes = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else -1
    message, rest = data[_LENGTH.size : _LENGTH.size + nbytes], data[_LENGTH.size + nbytes :]
    if nbytes < 0 or len(message) < nbytes:
        raise StoreError(
            f"a logged update ends within page {page.number}",
            "resume with the model it was logged with",
        )
    dtype: torch.dtype = getattr(torch, layout.tensors[page.tensor].dtype)
    values = decode(split(message), page.numel, dtype)
    return values.view(torch.uint8).numpy().tobytes(), rest
