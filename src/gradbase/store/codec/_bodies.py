"""Bodies of encoded pages: each codec writes one, reads one, and says what it left out.

An encoder takes float32 [n], already with the residual added, and turns it in place into the new residual.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from gradbase.store.codec._format import Header, damaged

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

INT8_BLOCK = 512
ONEBIT_BLOCK = 1024
_BLOCK_MAX = 1 << 20
_INT8_MAX = 127
# Of each run of so many values one is looked at to estimate a threshold: a prime, so that no column of a matrix is
# left out.
_SAMPLE_STRIDE = 61
_CANDIDATES = 1.5  # of the k wanted
_MORE = 255
_RETRIES = 4


class Body(NamedTuple):
    """A codec: `encode(values, share) -> (body, extra)` and `decode(header, body, out)`; `again` encodes what was
    decoded, where `encode` would not give the same back, and leaves it as it was.
    """

    encode: Callable[[Floats, float], tuple[Bytes, int]]
    decode: Callable[[Header, memoryview, Floats], None]
    again: Callable[[Floats, float], tuple[Bytes, int]] | None = None


def _encode_bf16(values: Floats, share: float) -> tuple[Bytes, int]:
    out, (codes,) = _body((len(values), np.uint16))
    rounded = torch.from_numpy(codes).view(torch.bfloat16).copy_(torch.from_numpy(values))
    torch.from_numpy(values).sub_(rounded)
    return out, 0


def _decode_bf16(header: Header, body: memoryview, out: Floats) -> None:
    _expect(header.extra == 0 and len(body) == 2 * len(out), "a bf16 body has 2 bytes an element")
    codes = torch.from_numpy(np.frombuffer(body, np.uint16).copy()) if len(out) else torch.empty(0, dtype=torch.uint16)
    torch.from_numpy(out).copy_(codes.view(torch.bfloat16))


def _encode_int8(values: Floats, share: float) -> tuple[Bytes, int]:
    out, (scales, codes) = _body((_blocks(len(values), INT8_BLOCK), np.float32), (len(values), np.int8))
    for part, scale, code in _squares(values, scales, codes, INT8_BLOCK):
        work = _scratch(part)
        np.max(np.abs(part, out=work), axis=1, out=scale)
        scale /= _INT8_MAX
        _multiply(part, _inverse(scale), work)
        np.copyto(code, np.rint(work, out=work), casting="unsafe")
        _subtract(part, work, scale)
    return out, INT8_BLOCK


def _decode_int8(header: Header, body: memoryview, out: Floats) -> None:
    blocks = _check_blocks(header, len(out))
    _expect(len(body) == 4 * blocks + len(out), "an int8 body has a scale a block and a byte an element")
    scales, codes = np.frombuffer(body[: 4 * blocks], np.float32).copy(), np.frombuffer(body[4 * blocks :], np.int8)
    for part, scale, code in _squares(out, scales, codes, header.extra):
        np.copyto(part, code)
        _multiply(part, scale, part)


def _encode_onebit(values: Floats, share: float) -> tuple[Bytes, int]:
    """Signs and the mean magnitude of each block, which minimizes the squared error for given signs."""
    blocks = _blocks(len(values), ONEBIT_BLOCK)
    out, (scales, bits) = _body((blocks, np.float32), (-(-len(values) // 8), np.uint8))
    bits[:] = np.packbits(values >= 0)
    for part, scale, sign in _squares(values, scales, _signs(bits, len(values)), ONEBIT_BLOCK):
        np.mean(np.abs(part, out=_scratch(part)), axis=1, out=scale)
        _subtract(part, sign, scale)
    return out, ONEBIT_BLOCK


def _again_onebit(values: Floats, share: float) -> tuple[Bytes, int]:
    """Of what was decoded: the one magnitude of each block, which the mean of many only comes close to."""
    blocks = _blocks(len(values), ONEBIT_BLOCK)
    out, (scales, bits) = _body((blocks, np.float32), (-(-len(values) // 8), np.uint8))
    bits[:] = np.packbits(~np.signbit(values))
    for part, scale, _ in _squares(values, scales, values, ONEBIT_BLOCK):
        np.max(np.abs(part, out=_scratch(part)), axis=1, out=scale)
    return out, ONEBIT_BLOCK


def _decode_onebit(header: Header, body: memoryview, out: Floats) -> None:
    blocks, packed = _check_blocks(header, len(out)), -(-len(out) // 8)
    _expect(len(body) == 4 * blocks + packed, "a onebit body has a scale a block and a bit an element")
    scales, bits = np.frombuffer(body[: 4 * blocks], np.float32).copy(), np.frombuffer(body[4 * blocks :], np.uint8)
    spare = 8 * packed - len(out)
    _expect(not spare or not bits[-1] & ((1 << spare) - 1), "the unused bits of a onebit body are zero")
    _signs(bits, len(out), out)
    for part, scale, _ in _squares(out, scales, out, header.extra):
        _multiply(part, scale, part)


def _signs(bits: NDArray[np.uint8], numel: int, out: Floats | None = None) -> Floats:
    """1.0 or -1.0 for each packed bit, [numel]."""
    signs = np.empty(numel, np.float32) if out is None else out
    whole = numel // 8
    np.take(_SIGNS, bits[:whole], axis=0, out=signs[: 8 * whole].reshape(whole, 8), mode="clip")
    signs[8 * whole :] = _SIGNS[bits[whole:]].reshape(-1)[: numel - 8 * whole]
    return signs


# The eight signs that a byte of packed bits stands for.
_SIGNS: Floats = (np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) * 2.0 - 1.0).astype(np.float32)


def _encode_topk(values: Floats, share: float) -> tuple[Bytes, int]:
    positions = largest(values, min(math.ceil(len(values) * share), len(values)))
    out, rounded = _kept(values, positions)
    values[positions] -= rounded
    return out, len(positions)


def _again_topk(values: Floats, share: float) -> tuple[Bytes, int]:
    """Of what was decoded: all that was kept, whatever the share was then."""
    positions = np.flatnonzero(values)
    return _kept(values, positions)[0], len(positions)


def _kept(values: Floats, positions: NDArray[np.intp]) -> tuple[Bytes, Floats]:
    """The body, and what a reader finds at the positions."""
    gaps = _gaps(positions)
    out, (codes, places) = _body((len(positions), np.uint16), (len(gaps), np.uint8))
    places[:] = gaps
    rounded = torch.from_numpy(codes).view(torch.bfloat16).copy_(torch.from_numpy(values[positions]))
    return out, rounded.float().numpy()


def _gaps(positions: NDArray[np.intp]) -> Bytes:
    """Ascending positions in bytes: the elements skipped before each; 255 stands for 255 and says that more follows."""
    skipped = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(skipped // _MORE + 1)
    out = np.full(int(ends[-1]) if len(ends) else 0, _MORE, np.uint8)
    out[ends - 1] = skipped % _MORE
    return out


def _positions(gaps: Bytes) -> NDArray[np.int64]:
    ends = gaps != _MORE
    return np.cumsum(gaps + ends.astype(np.int64))[ends] - 1


def largest(values: Floats, count: int) -> NDArray[np.intp]:
    """Positions of the `count` values of largest magnitude, ascending; zeros are left out."""
    candidates = _candidates(values, count)
    if len(candidates) <= count:
        return candidates
    order = np.argpartition(np.abs(values[candidates]), len(candidates) - count)
    return np.sort(candidates[order[len(candidates) - count :]])


def _candidates(values: Floats, count: int) -> NDArray[np.intp]:
    """At least the `count` largest, and few more: those above a threshold that a sample suggests."""
    if count == 0:
        return np.empty(0, np.intp)
    magnitudes = np.abs(values, out=_scratch(values))
    sample = magnitudes[::_SAMPLE_STRIDE]
    wanted = count * _CANDIDATES / len(values)
    for _ in range(_RETRIES):
        keep = min(math.ceil(len(sample) * wanted), len(sample))
        threshold = np.partition(sample, len(sample) - keep)[len(sample) - keep]
        found = np.flatnonzero(magnitudes >= max(threshold, _TINY))
        if len(found) >= count:
            return found
        wanted *= 2
    return np.flatnonzero(magnitudes)


_TINY = np.finfo(np.float32).smallest_subnormal


def _decode_topk(header: Header, body: memoryview, out: Floats) -> None:
    count = header.extra
    _expect(count <= len(out) and len(body) >= 3 * count, "a topk body has at least 3 bytes a kept element")
    codes, gaps = np.frombuffer(body[: 2 * count], np.uint16).copy(), np.frombuffer(body[2 * count :], np.uint8)
    positions = _positions(gaps)
    _expect(len(positions) == count and not (len(gaps) and gaps[-1] == _MORE), "a topk body has a position an element")
    _expect(count == 0 or positions[-1] < len(out), "the positions of a topk body are inside the page")
    out[:] = 0
    if count:
        out[positions] = torch.from_numpy(codes).view(torch.bfloat16).float().numpy()


BODIES: Mapping[str, Body] = {
    "bf16": Body(_encode_bf16, _decode_bf16),
    "int8": Body(_encode_int8, _decode_int8),
    "topk": Body(_encode_topk, _decode_topk, _again_topk),
    "onebit": Body(_encode_onebit, _decode_onebit, _again_onebit),
}


def _body(*parts: tuple[int, DTypeLike]) -> tuple[Bytes, list[NDArray[Any]]]:
    """A body with room for (count, dtype) arrays, and the arrays as views into it."""
    sizes = [count * np.dtype(kind).itemsize for count, kind in parts]
    out = np.empty(sum(sizes), np.uint8)
    views, offset = [], 0
    for (count, kind), size in zip(parts, sizes, strict=True):
        views.append(np.frombuffer(out, kind, count, offset))
        offset += size
    return out, views


_CHUNK_NUMEL = 1 << 16  # 256 KiB: what one pass leaves in the cache the next one finds there


def _squares(
    values: Floats, scales: Floats, codes: NDArray[Any], block: int
) -> Iterator[tuple[Floats, Floats, NDArray[Any]]]:
    """Some blocks at a time: values [m, block], scales [m], codes [m, block]; last a block that is shorter."""
    step = max(_CHUNK_NUMEL // block, 1)
    whole = len(values) // block
    for first in range(0, whole, step):
        last = min(first + step, whole)
        part = slice(first * block, last * block)
        yield values[part].reshape(-1, block), scales[first:last], codes[part].reshape(-1, block)
    if whole * block < len(values):
        yield values[whole * block :][None], scales[whole:], codes[whole * block :][None]


_local = threading.local()


def _scratch(like: Floats) -> Floats:
    """This thread's memory in the shape of `like`, until the next call: fresh memory costs more than a pass over it."""
    memory: Floats | None = getattr(_local, "memory", None)
    if memory is None or memory.size < like.size:
        memory = _local.memory = np.empty(like.size, np.float32)
    return memory[: like.size].reshape(like.shape)


def _multiply(part: Floats, scale: Floats, out: Floats) -> None:
    """part [m, block] times scale [m]; torch does it three times as fast as numpy."""
    torch.mul(torch.from_numpy(part), torch.from_numpy(scale)[:, None], out=torch.from_numpy(out))


def _subtract(part: Floats, codes: Floats, scale: Floats) -> None:
    """part -= codes * scale, in one pass."""
    torch.from_numpy(part).addcmul_(torch.from_numpy(codes), torch.from_numpy(scale)[:, None], value=-1)


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 where it is 0 or so small that the quotient is no number."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.reciprocal(scales)
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _blocks(numel: int, block: int) -> int:
    return -(-numel // block)


def _check_blocks(header: Header, numel: int) -> int:
    _expect(1 <= header.extra <= _BLOCK_MAX, "a block has 1 to 2^20 elements")
    return _blocks(numel, header.extra)


def _expect(held: bool, rule: str) -> None:
    if not held:
        raise damaged(f"{rule}, and this one has not")
