"""Which codec: from the measured speed of the link and of the codecs on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gradbase.common.units import format_bytes, format_us
from gradbase.store.codec._codec import Codec, Compressor, decode
from gradbase.store.codec._direction import Direction

# From the most faithful to the least.
CANDIDATES = (Codec("none"), Codec("bf16"), Codec("int8"), Codec("topk"), Codec("onebit"))
# A codec replaces a more faithful one only where it takes at most this share of its time: what rounds a little has to
# be worth the rounding, what delays most of the gradient by many steps has to halve the time.
WORTHWHILE = {"none": 1.0, "bf16": 0.9, "int8": 0.9, "topk": 0.5, "onebit": 0.5}
_PAGES = 8
_PAGE_NUMEL = 1 << 18
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """Bytes of float32 a second of CPU, both ways, and how many bytes go out for each that comes in."""

    encode_bytes_per_s: float
    decode_bytes_per_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The codec, why, and what each candidate would have taken."""

    codec: Codec
    reason: str
    times_us: Mapping[str, float]

    def __str__(self) -> str:
        return f"codec={self.codec} ({self.reason})"


def choose(
    nbytes: int,
    link_bytes_per_s: float | None,
    speeds: Mapping[str, CodecSpeed],
    candidates: Sequence[Codec] = CANDIDATES,
) -> Choice:
    """The codec for pushing `nbytes` of float32 over a link; a link of None is shared memory, where nothing is sent.

    The time is encoding, sending and decoding one after the other: encoding takes cores from the backward pass even
    where it overlaps with sending.
    """
    if link_bytes_per_s is None:
        return Choice(Codec("none"), "shared memory: nothing is sent", {"none": 0.0})
    times = {str(codec): _time_us(codec, nbytes, link_bytes_per_s, speeds) for codec in candidates}
    chosen = candidates[0]
    for codec in candidates[1:]:
        if times[str(codec)] <= WORTHWHILE[codec.name] * times[str(chosen)]:
            chosen = codec
    return Choice(chosen, _reason(chosen, nbytes, link_bytes_per_s, times), times)


def measure_speeds(
    candidates: Sequence[Codec] = CANDIDATES, direction: Direction | None = None
) -> dict[str, CodecSpeed]:
    """Measure the codecs here, with error feedback, on pages of normal numbers; takes about half a second.

    direction: how lanes find Adam's directions for the codecs that want them, which is their work too.
    """
    generator = torch.Generator().manual_seed(0)
    pages = [torch.randn(_PAGE_NUMEL, generator=generator) for _ in range(_PAGES)]
    return {
        str(codec): _measure(replace(codec, direction=direction) if codec.directs else codec, pages)
        for codec in candidates
    }


def _measure(codec: Codec, pages: Sequence[torch.Tensor]) -> CodecSpeed:
    compressor = Compressor(dict.fromkeys(range(len(pages)), codec))
    outs = [torch.empty_like(page) for page in pages]
    nbytes = sum(page.numel() * 4 for page in pages)
    encoding, decoding, sent = [], [], 0
    for _ in range(_REPEATS):
        start = time.process_time()
        messages = [compressor.encode(number, page) for number, page in enumerate(pages)]
        middle = time.process_time()
        for message, out in zip(messages, outs, strict=True):
            decode(message, out.numel(), out=out)
        encoding.append(middle - start)
        decoding.append(time.process_time() - middle)
        sent = sum(message.nbytes for message in messages)
    tick = time.get_clock_info("process_time").resolution
    best = [nbytes / max(min(times), tick) for times in (encoding, decoding)]
    return CodecSpeed(best[0], best[1], sent / nbytes)


def _time_us(codec: Codec, nbytes: int, link: float, speeds: Mapping[str, CodecSpeed]) -> float:
    speed = speeds[str(codec)]
    work = nbytes / speed.encode_bytes_per_s + nbytes / speed.decode_bytes_per_s if codec.lossy else 0.0
    return 1e6 * (work + nbytes * speed.ratio / link)


def _reason(codec: Codec, nbytes: int, link: float, times: Mapping[str, float]) -> str:
    best = f"{format_us(times[str(codec)])} for {format_bytes(nbytes)} at {format_bytes(link)}/s"
    others = ", ".join(f"{name} {format_us(time_us)}" for name, time_us in times.items() if name != str(codec))
    return f"{best}; {others}" if others else best
