"""A checksum at the speed of memory; the README of this room defines it."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.store.files import BLOCK_BYTES

_WORDS = BLOCK_BYTES // 8

Bytes = NDArray[np.uint8]


def checksum(data: Bytes) -> int:
    """CRC-32 of the sums of the words of each block; `data` is uint8 [n]."""
    whole = len(data) - len(data) % BLOCK_BYTES
    crc = _crc_of_blocks(data[:whole], 0) if whole else 0
    if whole == len(data):
        return crc
    rest = np.zeros(BLOCK_BYTES, np.uint8)
    rest[: len(data) - whole] = data[whole:]
    return _crc_of_blocks(rest, crc)


def _crc_of_blocks(data: Bytes, crc: int) -> int:
    # View as rows of bytes first: a view as words works at any address then.
    words: NDArray[Any] = data.view("<u8").reshape(-1, _WORDS)
    return zlib.crc32(np.add.reduce(words, axis=1).data, crc)
