"""The buffer manager's hands: arena, page file, pager, planned frames. See README.md for the rules."""

from gradbase.buffer._arena import Arena, DeviceArena, FrameSource
from gradbase.buffer._pagefile import PageFile
from gradbase.buffer._pager import Pager, PagerProtocol, PagerStatistics, Traffic

__all__ = [
    "Arena",
    "DeviceArena",
    "FrameSource",
    "PageFile",
    "Pager",
    "PagerProtocol",
    "PagerStatistics",
    "Traffic",
]
