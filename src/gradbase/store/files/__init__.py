"""What the store asks of a file system, and the real one."""

from gradbase.store.files._disk import PROBE, DiskFiles, DiskRate, measure_disk
from gradbase.store.files._protocol import BLOCK_BYTES, FULL, File, Files, Mode, align_up, aligned_memory, is_full

__all__ = [
    "BLOCK_BYTES",
    "FULL",
    "PROBE",
    "DiskFiles",
    "DiskRate",
    "File",
    "Files",
    "Mode",
    "align_up",
    "aligned_memory",
    "is_full",
    "measure_disk",
]
