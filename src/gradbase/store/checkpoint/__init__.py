"""Checkpoints of a store: plain safetensors, taken while training goes on."""

from gradbase.store.checkpoint._checkpointer import Checkpointer, CheckpointStats, Snapshot, Source
from gradbase.store.checkpoint._checksum import checksum
from gradbase.store.checkpoint._of_store import pack_state, shard_owners, shard_sources, store_files, unpack_state
from gradbase.store.checkpoint._part import (
    Checkpoint,
    Part,
    checkpoint_path,
    complete_checkpoints,
    numbers,
    owners,
    read_checkpoint,
    read_part,
)
from gradbase.store.checkpoint._reading import (
    OPTIMIZER,
    PARAMETERS,
    Verified,
    in_order,
    read_parameters,
    state_of,
    verify,
)
from gradbase.store.checkpoint._safetensors import DataFile, Tensor, data_file, read_header

__all__ = [
    "OPTIMIZER",
    "PARAMETERS",
    "Checkpoint",
    "CheckpointStats",
    "Checkpointer",
    "DataFile",
    "Part",
    "Snapshot",
    "Source",
    "Tensor",
    "Verified",
    "checkpoint_path",
    "checksum",
    "complete_checkpoints",
    "data_file",
    "in_order",
    "numbers",
    "owners",
    "pack_state",
    "read_checkpoint",
    "read_header",
    "read_parameters",
    "read_part",
    "shard_owners",
    "shard_sources",
    "state_of",
    "store_files",
    "unpack_state",
    "verify",
]
