"""Devices as the roofline sees them, each figure with its source.

Peaks are dense: where a data sheet prints figures "with sparsity", half of them stands here. float32 on NVIDIA
devices is the rate without TF32, because torch multiplies float32 matrices that way unless told otherwise.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gradbase.common.errors import UsageError
from gradbase.ir.costs import Tier

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class DeviceProfile:
    """Peak rates of one device.

    `peak_flops`: floating-point operations a second by dtype, dense. `compute_efficiency` and
    `memory_efficiency`: the share of the peaks that good kernels sustain. `overhead_us`: what starting one
    operator costs when it computes nothing. `tier_*`: the slow tier that goes with the device: pinned host
    memory over the host link for CUDA (write is device to host), a disk for a CPU; sustained, not peak.
    `sources` says for every figure where it is from, `peak_flops.float32` for one dtype's.
    """

    name: str
    kind: DeviceKind
    peak_flops: Mapping[str, float]
    compute_efficiency: float
    memory_bandwidth_bytes_per_s: float
    memory_efficiency: float
    memory_bytes: int
    overhead_us: float
    tier_write_bytes_per_s: float
    tier_read_bytes_per_s: float
    tier_latency_us: float
    tier_duplex: bool
    sources: Mapping[str, str] = field(repr=False)

    def figures(self) -> dict[str, float]:
        """Every figure by the key it has in `sources`."""
        flat = {f"peak_flops.{dtype}": rate for dtype, rate in self.peak_flops.items()}
        named = {key: value for key, value in asdict(self).items() if key not in ("name", "kind", "peak_flops")}
        return flat | {key: float(value) for key, value in named.items() if key != "sources"}

    def flops_per_s(self, dtype: str) -> float:
        """The sustained rate for a dtype; one that is not listed runs at float32's."""
        return self.peak_flops.get(dtype, self.peak_flops["float32"]) * self.compute_efficiency

    def bytes_per_s(self) -> float:
        """The sustained rate of the device's own memory."""
        return self.memory_bandwidth_bytes_per_s * self.memory_efficiency

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """The reverse of `to_json`; ValueError, KeyError or TypeError on anything else."""
        document: dict[str, Any] = json.loads(text)
        return cls(**document)


def tier_from_profile(profile: DeviceProfile) -> Tier:
    """The slow tier of a device that was not measured.

    A transfer crosses the device's own memory once, so the bandwidth it takes from computing is the tax.
    """
    fastest = max(profile.tier_write_bytes_per_s, profile.tier_read_bytes_per_s)
    return Tier(
        write_bytes_per_us=profile.tier_write_bytes_per_s / 1e6,
        read_bytes_per_us=profile.tier_read_bytes_per_s / 1e6,
        latency_us=profile.tier_latency_us,
        compute_tax=fastest / profile.bytes_per_s(),
        duplex=profile.tier_duplex,
        source="roofline",
    )


def get_profile(name: str) -> DeviceProfile:
    """The profile called `name`. Raises UsageError, with the nearest name, when there is none."""
    known = PROFILES.get(name.lower())
    if known is not None:
        return known
    close = difflib.get_close_matches(name.lower(), PROFILES, n=1)
    hints = [f"did you mean {match}?" for match in close]
    raise UsageError(f"there is no device profile {name!r}", *hints, f"expected one of {', '.join(PROFILES)}")


# What good kernels sustain of the peak, seen on an H100 SXM with torch 2.11: a bfloat16 product of 8192x8192
# matrices ran at 798 of 989 TFLOP/s, and a copy within the device moved 3.0 of 3.35 TB/s (on an H200 788
# TFLOP/s, and 4.3 of 4.8 TB/s). Small and odd shapes do worse; the roofline is the bound from below.
_GPU_COMPUTE_EFFICIENCY = 0.8
_GPU_MEMORY_EFFICIENCY = 0.9
_GPU_COMPUTE_SOURCE = "798 of 989 TFLOP/s in a bfloat16 product of 8192x8192 matrices, H100 SXM, torch 2.11"
_GPU_MEMORY_SOURCE = "3.0 of 3.35 TB/s in a copy within the device, H100 SXM, torch 2.11"

_GPU_OVERHEAD_US = 5.0
_GPU_OVERHEAD_SOURCE = "assumption: about 5 µs from one kernel launch to the next through torch's dispatcher"

_PCIE_TRANSFERS_PER_S = {4: 16e9, 5: 32e9}
_PCIE_LANES = 16
_PCIE_SUSTAINED_SHARE = 0.8
_PCIE_LATENCY_US = 10.0


def _pcie_bytes_per_s(generation: int) -> float:
    """Sustained bandwidth of sixteen lanes, each way: 128 of every 130 bits carry data, less packet headers."""
    return _PCIE_TRANSFERS_PER_S[generation] * _PCIE_LANES * (128 / 130) / 8 * _PCIE_SUSTAINED_SHARE


def _gpu_sources(sheet: str, peak_flops: Mapping[str, float], pcie: int) -> dict[str, str]:
    lanes = f"{_PCIE_LANES} lanes at {_PCIE_TRANSFERS_PER_S[pcie] / 1e9:.0f} GT/s"
    link = (
        f"PCI Express {pcie}.0 base specification: {lanes}, "
        f"128b/130b; assumption: {_PCIE_SUSTAINED_SHARE} of it left by packet headers and flow control, pinned memory"
    )
    return {
        **{f"peak_flops.{dtype}": f"{sheet}; dense" for dtype in peak_flops},
        "compute_efficiency": _GPU_COMPUTE_SOURCE,
        "memory_bandwidth_bytes_per_s": sheet,
        "memory_efficiency": _GPU_MEMORY_SOURCE,
        "memory_bytes": f"{sheet}; a GB taken as 10^9 bytes, the careful reading",
        "overhead_us": _GPU_OVERHEAD_SOURCE,
        "tier_write_bytes_per_s": link,
        "tier_read_bytes_per_s": link,
        "tier_latency_us": "assumption: about 10 µs to start an asynchronous copy and see its event",
        "tier_duplex": "PCI Express is full duplex, and the device has a copy engine for each direction",
    }


def _gpu(
    name: str, sheet: str, *, teraflops: Mapping[str, float], gb_per_s: float, memory_gb: int, pcie: int
) -> DeviceProfile:
    peak_flops = {dtype: rate * 1e12 for dtype, rate in teraflops.items()}
    return DeviceProfile(
        name=name,
        kind="cuda",
        peak_flops=peak_flops,
        compute_efficiency=_GPU_COMPUTE_EFFICIENCY,
        memory_bandwidth_bytes_per_s=gb_per_s * 1e9,
        memory_efficiency=_GPU_MEMORY_EFFICIENCY,
        memory_bytes=memory_gb * 10**9,
        overhead_us=_GPU_OVERHEAD_US,
        tier_write_bytes_per_s=_pcie_bytes_per_s(pcie),
        tier_read_bytes_per_s=_pcie_bytes_per_s(pcie),
        tier_latency_us=_PCIE_LATENCY_US,
        tier_duplex=True,
        sources=_gpu_sources(sheet, peak_flops, pcie),
    )


# The sheet prints tensor-core figures "with sparsity"; these are half of them.
_HOPPER_TERAFLOPS = {
    "float64": 34.0,
    "float32": 67.0,
    "bfloat16": 989.5,
    "float16": 989.5,
    "float8_e4m3fn": 1979.0,
    "float8_e5m2": 1979.0,
}

_H100 = _gpu(
    "h100",
    "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM",
    teraflops=_HOPPER_TERAFLOPS,
    gb_per_s=3350,
    memory_gb=80,
    pcie=5,
)

_H200 = _gpu(
    "h200",
    "NVIDIA H200 Tensor Core GPU data sheet, H200 SXM",
    teraflops=_HOPPER_TERAFLOPS,
    gb_per_s=4800,
    memory_gb=141,
    pcie=5,
)

_A100 = _gpu(
    "a100",
    "NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM",
    teraflops={"float64": 9.7, "float32": 19.5, "bfloat16": 312.0, "float16": 312.0},
    gb_per_s=2039,
    memory_gb=80,
    pcie=4,
)

# Half-precision rates are those that accumulate in float32, as torch asks for; GeForce runs them at half speed.
_RTX4090 = _gpu(
    "rtx4090",
    "NVIDIA Ada GPU Architecture white paper, appendix A, GeForce RTX 4090",
    teraflops={
        "float64": 1.29,
        "float32": 82.6,
        "bfloat16": 165.2,
        "float16": 165.2,
        "float8_e4m3fn": 330.3,
        "float8_e5m2": 330.3,
    },
    gb_per_s=1008,
    memory_gb=24,
    pcie=4,
)

_LAPTOP_SHEET = "AMD Ryzen 7 7840U product page"
_LAPTOP_CORES = 8
_LAPTOP_BASE_HZ = 3.3e9
_ZEN4_FLOAT32_PER_CYCLE = 2 * 8 * 2  # two units, eight lanes each, multiply and add
_LAPTOP_CYCLES_PER_S = _LAPTOP_CORES * _LAPTOP_BASE_HZ
_LAPTOP_RATE = f"{_LAPTOP_SHEET}: {_LAPTOP_CORES} cores at a base clock of 3.3 GHz; AMD Zen 4 optimization guide: "
_DISK = "Samsung 980 PRO 1TB data sheet"

# The disk a CPU pages to when nobody measured it: a common NVMe drive at the rate it keeps up, past its cache.
DISK_WRITE_BYTES_PER_S = 2000e6
DISK_READ_BYTES_PER_S = 7000e6
DISK_LATENCY_US = 1e6 / 22_000
DISK_SOURCES = {
    "tier_write_bytes_per_s": f"{_DISK}: sequential write after TurboWrite (sustained, not the cache's 5000 MB/s)",
    "tier_read_bytes_per_s": f"{_DISK}: sequential read",
    "tier_latency_us": f"{_DISK}: 22,000 random reads a second of 4 KB at queue depth 1",
    "tier_duplex": "assumption: reads and writes share the flash channels",
}

CPU_OVERHEAD_US = 4.0
CPU_OVERHEAD_SOURCE = "3.6 and 4.6 µs: one-element aten.add and aten.mm by overload, a shared server core, torch 2.13"

_LAPTOP_CPU = DeviceProfile(
    name="laptop-cpu",
    kind="cpu",
    peak_flops={
        "float64": _LAPTOP_CYCLES_PER_S * _ZEN4_FLOAT32_PER_CYCLE / 2,
        "float32": _LAPTOP_CYCLES_PER_S * _ZEN4_FLOAT32_PER_CYCLE,
        "bfloat16": _LAPTOP_CYCLES_PER_S * _ZEN4_FLOAT32_PER_CYCLE * 2,
        "float16": _LAPTOP_CYCLES_PER_S * _ZEN4_FLOAT32_PER_CYCLE,
    },
    compute_efficiency=0.7,
    memory_bandwidth_bytes_per_s=5600e6 * 2 * 8,
    memory_efficiency=0.8,
    memory_bytes=16 * 2**30,
    overhead_us=CPU_OVERHEAD_US,
    tier_write_bytes_per_s=DISK_WRITE_BYTES_PER_S,
    tier_read_bytes_per_s=DISK_READ_BYTES_PER_S,
    tier_latency_us=DISK_LATENCY_US,
    tier_duplex=False,
    sources={
        "peak_flops.float64": f"{_LAPTOP_RATE}16 float64 operations a cycle",
        "peak_flops.float32": f"{_LAPTOP_RATE}two 256-bit multiply-add units, 32 float32 operations a cycle",
        "peak_flops.bfloat16": f"{_LAPTOP_RATE}AVX512_BF16, 64 bfloat16 operations a cycle",
        "peak_flops.float16": f"{_LAPTOP_RATE}no float16 arithmetic, computed as float32",
        "compute_efficiency": "assumption: 0.7 of the peak, as a thin laptop throttles under load",
        "memory_bandwidth_bytes_per_s": f"{_LAPTOP_SHEET}: DDR5-5600, two channels of 8 bytes",
        "memory_efficiency": "assumption: 0.8 of the bus, usual for STREAM on two channels",
        "memory_bytes": "assumption: 16 GiB, a common size",
        "overhead_us": CPU_OVERHEAD_SOURCE,
        **DISK_SOURCES,
    },
)

PROFILES: dict[str, DeviceProfile] = {profile.name: profile for profile in (_H100, _H200, _A100, _RTX4090, _LAPTOP_CPU)}
