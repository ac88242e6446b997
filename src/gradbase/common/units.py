"""Bytes and times as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gradbase.common.errors import UsageError

_BYTE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTE_UNITS[_letter] = _BYTE_UNITS[f"{_letter}b"] = 1000**_power
    _BYTE_UNITS[f"{_letter}ib"] = 1024**_power

_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*|%)\s*")


@dataclass(frozen=True)
class MemoryRequest:
    """A budget as asked for: bytes, or a share of what eager PyTorch needs for the same step."""

    bytes: int | None = None
    share: float | None = None

    def resolve(self, eager_peak_bytes: int) -> int:
        """The budget in bytes, given eager's peak for the step."""
        if self.bytes is not None:
            return self.bytes
        assert self.share is not None
        return int(self.share * eager_peak_bytes)


def parse_memory(text: str | int | float | None) -> MemoryRequest | None:
    """Read "1.5GB", "800MiB", 2000000000 or "40%"; None asks for no limit.

    Raises UsageError on anything else, and on amounts that are not above zero.
    """
    if text is None:
        return None
    if isinstance(text, float) and 0 < text < 1:
        raise UsageError(f"memory {text!r} is less than a byte", f'a share of eager\'s peak is written "{text:.0%}"')
    if isinstance(text, (int, float)) and not isinstance(text, bool) and math.isfinite(text):
        text = str(int(text))
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    unit = match.group(2).lower() if match else ""
    if match is None or (unit != "%" and unit not in _BYTE_UNITS):
        raise UsageError(
            f"memory {text!r} is not an amount",
            'expected bytes ("1.5GB", "800MiB", 2000000000) or a share of eager\'s peak ("40%")',
        )
    amount = float(match.group(1))
    if amount <= 0:
        raise UsageError(f"memory {text!r} is not above zero", 'give an amount such as "1.5GB" or "40%"')
    if unit == "%":
        return MemoryRequest(share=amount / 100)
    return MemoryRequest(bytes=int(amount * _BYTE_UNITS[unit]))


def format_bytes(amount: float) -> str:
    """1610612736 -> "1.50 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1024
    return f"{amount:.2f} TiB"


def format_us(time_us: float) -> str:
    """1234.5 -> "1.23 ms"."""
    if time_us < 1000:
        return f"{time_us:.0f} µs"
    if time_us < 1_000_000:
        return f"{time_us / 1000:.2f} ms"
    return f"{time_us / 1_000_000:.2f} s"
