"""The roofline (Williams, Waterman, Patterson, CACM 52(4), 2009): what an operator takes at the very least.

    time = max(flops / sustained rate of the dtype, moved bytes / sustained bandwidth) + overhead

Matrix products and convolutions run at the rate of the dtype. Pointwise operators do not reach that rate, but
they move so many bytes for each operation that the second term decides, so one formula serves both.
"""

from __future__ import annotations

import math
import re

from gradbase.cost._profiles import DeviceProfile
from gradbase.ir.costs import Estimate
from gradbase.ir.logical import Operator, Tensor

_BITS = re.compile(r"\d+")


def roofline(operator: Operator, profile: DeviceProfile) -> Estimate:
    """The time of an operator from its flops and moved bytes; scratch is taken as none, as nothing says otherwise."""
    time_us = roofline_time_us(operator.flops, operator.moved_bytes, heaviest_dtype(operator), profile)
    return Estimate(time_us=time_us, scratch_bytes=0, source="roofline")


def roofline_time_us(flops: float, moved_bytes: float, dtype: str, profile: DeviceProfile) -> float:
    """Microseconds for so many operations and bytes."""
    compute_s = flops / profile.flops_per_s(dtype)
    memory_s = moved_bytes / profile.bytes_per_s()
    return max(compute_s, memory_s) * 1e6 + profile.overhead_us


def heaviest_dtype(operator: Operator) -> str:
    """The dtype of the largest input in bytes; of the largest output where there is no input."""
    tensors = operator.inputs or operator.outputs
    return max(tensors, key=_nbytes).dtype if tensors else "float32"


def _nbytes(tensor: Tensor) -> int:
    bits = _BITS.search(tensor.dtype)
    return math.prod(tensor.shape) * (int(bits.group()) if bits else 8)
