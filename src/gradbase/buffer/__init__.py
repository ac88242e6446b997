"""The buffer manager's hands: arena, page file, pager, planned frames. See README.md for the rules."""

from gradbase.buffer._arena import Arena, DeviceArena, FrameSource
from gradbase.buffer._cuda import CudaPager
from gradbase.buffer._frames import Allocation, AllocationLog, Expectation, Frames, load_frames
from gradbase.buffer._pagefile import PageFile
from gradbase.buffer._pager import Pager, PagerProtocol, PagerStatistics, Traffic
from gradbase.buffer._region import Region, Runs, total_bytes, union
from gradbase.buffer._tier import measure_tier

__all__ = [
    "Allocation",
    "AllocationLog",
    "Arena",
    "CudaPager",
    "DeviceArena",
    "Expectation",
    "FrameSource",
    "Frames",
    "PageFile",
    "Pager",
    "PagerProtocol",
    "PagerStatistics",
    "Region",
    "Runs",
    "Traffic",
    "load_frames",
    "measure_tier",
    "total_bytes",
    "union",
]
