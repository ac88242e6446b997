"""Encode and decode pages; a worker's codecs with what they left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.store.codec._bodies import BODIES
from gradbase.store.codec._direction import Direction, Moments, carried_numel
from gradbase.store.codec._format import CODECS, HEADER, damaged, pack_header, read_header

Buffer = bytes | bytearray | memoryview
SHARE = 0.01
WARMUP_STEPS: Mapping[str, int] = {"topk": 60, "onebit": 0}
_WARMUP_SHARE = 0.25
_GRADIENTS = "gradients"
# What a codec may be given: numbers that float32 holds well enough.
LOSSY_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec and, for topk, the share of elements it keeps. As text: "int8", "topk:0.01".

    topk and onebit leave out most of a gradient, so they may begin with more of it, for `warmup_steps` (None: as many
    as WARMUP_STEPS says), which stand behind: "topk:0.01:500", "onebit:100". Where the server runs Adam they leave out
    of its directions, unless `gradients` says not to ("topk:0.01:60:gradients"); `direction` is how a lane finds these,
    None where it does not.
    """

    name: str = "none"
    share: float = SHARE
    warmup_steps: int | None = None
    gradients: bool = False
    direction: Direction | None = None

    def __str__(self) -> str:
        share = f":{self.share:g}" if self.name == "topk" else ""
        warmup = f":{self._warmup_steps}" if self.gradients or self.warmup_steps is not None else ""
        return f"{self.name}{share}{warmup}{f':{_GRADIENTS}' if self.gradients else ''}"

    @property
    def lossy(self) -> bool:
        return self.name != "none"

    @property
    def leaves_most_out(self) -> bool:
        """Whether most of a gradient waits for later messages, as opposed to being rounded."""
        return self.name in WARMUP_STEPS

    @property
    def directs(self) -> bool:
        """Whether it leaves out so much that, under Adam, it has to be of directions."""
        return self.leaves_most_out and not self.gradients

    @property
    def _warmup_steps(self) -> int:
        return WARMUP_STEPS.get(self.name, 0) if self.warmup_steps is None else self.warmup_steps

    def at(self, step: int) -> Codec:
        """What it is at a step of the job, from 0.

        topk's share falls exponentially from a fourth (Deep Gradient Compression, Lin et al., 2018, section 3.3);
        onebit can wait until Adam's second moments mean something (1-bit Adam, Tang et al., 2021, section 3.3), which
        matters where they are the server's.
        """
        if step >= self._warmup_steps:
            return self
        if self.name == "onebit":
            return Codec(direction=self.direction)
        done = step / self._warmup_steps
        return replace(self, share=max(self.share, _WARMUP_SHARE ** (1 - done) * self.share**done))


def parse_codec(text: str) -> Codec:
    """Read "none", "bf16", "int8", "onebit", "topk" or "topk:0.01", the latter ones with ":STEPS" for another warm-up
    and ":gradients" behind it; UsageError on anything else.
    """
    name, *settings = text.split(":")
    try:
        codec = _parsed(name, *settings)
    except (ValueError, TypeError):
        codec = Codec("")
    if codec.name not in CODECS or not 0 < codec.share <= 1 or (codec.warmup_steps or 0) < 0:
        raise UsageError(
            f"there is no codec {text!r}",
            f"use one of {', '.join(CODECS)}; topk takes a share, as in topk:0.01, and steps of its warm-up behind it, "
            "onebit these alone; both a last word for other than Adam's directions, as in topk:0.01:60:gradients",
        )
    return codec


def _parsed(name: str, *settings: str) -> Codec:
    """Raises ValueError or TypeError for settings that the codec has not."""
    if name == "topk":
        return _topk(*settings)
    if name == "onebit":
        return _onebit(*settings)
    return Codec("") if settings else Codec(name)


def _topk(share: str = str(SHARE), warmup_steps: str | None = None, of: str = "") -> Codec:
    return Codec("topk", float(share), _count(warmup_steps), _of_gradients(of))


def _onebit(warmup_steps: str | None = None, of: str = "") -> Codec:
    return Codec("onebit", warmup_steps=_count(warmup_steps), gradients=_of_gradients(of))


def _count(text: str | None) -> int | None:
    return None if text is None else int(text)


def _of_gradients(word: str) -> bool:
    if word not in ("", _GRADIENTS):
        raise ValueError(word)
    return bool(word)


class Message(NamedTuple):
    """An encoded page: 24 bytes of header, and the body, which for "none" is the page's own memory."""

    head: bytes
    body: Buffer

    @property
    def nbytes(self) -> int:
        return len(self.head) + len(self.body)


def encode(codec: Codec, page: torch.Tensor, residual: torch.Tensor | None = None) -> Message:
    """Encode a page, flat [n].

    residual: float32 [n], what earlier messages left out; it is added before, and holds afterwards what this one leaves
    out. Without, what the codec drops is lost. A page that goes as it is, is not copied: it must not change until the
    message was sent.
    """
    dtype = str(page.dtype).removeprefix("torch.")
    if not codec.lossy or dtype not in LOSSY_DTYPES or page.numel() == 0:
        return _encode_none(page, dtype)
    total = _float32(page) if residual is None else residual.add_(page)
    if not _encodable(total, page.dtype):
        if residual is not None:
            residual.zero_()
        return _encode_none(page, dtype)
    return _encode_total(codec, total, dtype)


def encode_direction(
    codec: Codec, page: torch.Tensor, carried: torch.Tensor, rate: float | None = None
) -> Message:
    """Encode Adam's direction of a page's gradient, flat [n], found as `codec.direction` says.

    carried: float32 [carried_numel], what the lane keeps of the page; all zero at the beginning, changed in place.
    rate: see `Moments.advance`.
    """
    assert codec.direction is not None
    dtype, gradient = str(page.dtype).removeprefix("torch."), page.detach().to(torch.float32)
    moments = Moments(carried, page.numel())
    if page.numel() == 0 or not _encodable(gradient, page.dtype):
        carried.zero_()
        return _encode_none(page, dtype)
    moments.advance(gradient, codec.direction, rate)
    if codec.lossy:
        return _encode_total(codec, moments.residual, dtype)
    whole = moments.residual.to(page.dtype, copy=True)
    moments.residual.zero_()
    return _encode_none(whole, dtype)


def _encode_total(codec: Codec, total: torch.Tensor, dtype: str) -> Message:
    """`total`, float32 [n], holds afterwards what is left out."""
    out, extra = BODIES[codec.name].encode(total.numpy(), codec.share)
    return Message(pack_header(codec.name, dtype, extra, len(total), len(out)), out.data)


def encode_again(codec: Codec, page: torch.Tensor) -> Message | None:
    """Encode a page that was decoded, so that the same bits come back; None where they would not."""
    again = BODIES[codec.name].again if codec.lossy else None
    if again is None or page.numel() == 0 or page.dtype != torch.float32:
        message = encode(codec, page)
    else:
        out, extra = again(page.numpy(), codec.share)
        message = Message(pack_header(codec.name, "float32", extra, page.numel(), len(out)), out.data)
    decoded = decode(message, page.numel(), page.dtype)
    return message if torch.equal(decoded.view(torch.uint8), page.view(torch.uint8)) else None


def _encodable(total: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is a number, and rounding cannot carry it beyond the largest of `dtype`; False for NaN."""
    least, most = torch.aminmax(total)
    bound = min(torch.finfo(dtype).max, torch.finfo(torch.bfloat16).max) / 2
    return max(-float(least), float(most)) <= bound and not math.isnan(float(least))


def decode(
    message: tuple[Buffer, Buffer], numel: int, dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The page in a message's head and body, [numel]; StoreError if they hold no page of that size and dtype.

    out: where to put it. Without, the result is new memory, or for "none" a view into the body if that is writable.
    """
    head, body = (memoryview(part).cast("B") for part in message)
    header = read_header(head, len(body))
    if header.numel != numel or header.dtype != str(dtype).removeprefix("torch."):
        raise damaged(f"it holds {header.numel} elements of {header.dtype}, not {numel} of {dtype}")
    if header.codec == "none":
        page = _decode_none(body, numel, dtype)
        return page if out is None else out.copy_(page)
    if header.dtype not in LOSSY_DTYPES:
        raise damaged(f"{header.codec} of {header.dtype}")
    direct = out is not None and dtype == torch.float32
    values = out if out is not None and direct else torch.empty(numel)
    BODIES[header.codec].decode(header, body, values.numpy())
    return values if direct or (out is None and dtype == torch.float32) else _cast(values, dtype, out)


def split(message: Buffer) -> tuple[memoryview, memoryview]:
    """Head and body of a message in one piece, as a log keeps it."""
    view = memoryview(message).cast("B")
    return view[: HEADER.size], view[HEADER.size :]


def _cast(values: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> torch.Tensor:
    return values.to(dtype) if out is None else out.copy_(values)


class Compressor:
    """A worker's codecs: one a tensor, with error feedback page by page.

    codecs: by page number; a page that is not named goes as it is. Bytes are counted before and after. `step` is that
    of the job, for warm-ups; None is long after them. `rate` is the server's learning rate at that step, for whoever
    changes it by a schedule: directions that were left out keep the rate of their time. None: it stays what it is.
    """

    def __init__(self, codecs: Mapping[int, Codec]) -> None:
        self.codecs = dict(codecs)
        self.step: int | None = None
        self.rate: float | None = None
        self.raw_nbytes = 0
        self.sent_nbytes = 0
        self._carried: dict[int, torch.Tensor] = {}

    def encode(self, number: int, page: torch.Tensor) -> Message:
        """The gradient of a page, flat, as what to push: once a push, for what is sent again is the same bytes."""
        codec = self.codecs.get(number, Codec())
        codec = codec if self.step is None else codec.at(self.step)
        if codec.direction is not None:
            message = encode_direction(codec, page, self._carry(number, page, codec.direction), self.rate)
        else:
            carried = self._carry(number, page) if codec.lossy and page.is_floating_point() else None
            message = encode(codec, page, carried)
        self.raw_nbytes += page.numel() * page.element_size()
        self.sent_nbytes += message.nbytes
        return message

    def state(self) -> dict[int, torch.Tensor]:
        """What is left out, and moments, by page, float32 [carried_numel]; copies, the worker's state."""
        return {number: carried.clone() for number, carried in self._carried.items()}

    def load_state(self, state: Mapping[int, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        self._carried = {number: carried.clone() for number, carried in state.items()}

    def _carry(self, number: int, page: torch.Tensor, direction: Direction | None = None) -> torch.Tensor:
        if number not in self._carried:
            self._carried[number] = torch.zeros(carried_numel(page.numel(), direction), dtype=torch.float32)
        return self._carried[number]


def _float32(page: torch.Tensor) -> torch.Tensor:
    """A copy, for the encoder to work in."""
    return page.detach().to(torch.float32, copy=True)


def _encode_none(page: torch.Tensor, dtype: str) -> Message:
    if page.numel() == 0:
        return Message(pack_header("none", dtype, 0, 0, 0), b"")
    flat: NDArray[np.uint8] = page.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return Message(pack_header("none", dtype, 0, page.numel(), len(flat)), flat.data)


def _decode_none(body: memoryview, numel: int, dtype: torch.dtype) -> torch.Tensor:
    if len(body) != numel * dtype.itemsize:
        raise damaged(f"{len(body)} bytes are not {numel} elements of {dtype}")
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    writable = bytearray(body) if body.readonly else body
    return torch.frombuffer(writable, dtype=dtype, count=numel)
