"""Capture a training step: the user's model, loss and optimizer as one logical plan."""

from gradbase.capture._batch import Batch, take_apart
from gradbase.capture._blocks import BlockStep, takes_blocks
from gradbase.capture._capture import Captured, capture_step
from gradbase.capture._eager import eager_peak_bytes
from gradbase.capture._optimizer import PartialStep, is_separable, state_of_new, twin_of
from gradbase.capture._program import Call, Kept, Program, Ref, eager_signature
from gradbase.capture._python import contents_of, numbers_of
from gradbase.capture._updates import Update

__all__ = [
    "Batch",
    "BlockStep",
    "Call",
    "Captured",
    "Kept",
    "PartialStep",
    "Program",
    "Ref",
    "Update",
    "capture_step",
    "contents_of",
    "eager_peak_bytes",
    "eager_signature",
    "is_separable",
    "numbers_of",
    "state_of_new",
    "take_apart",
    "takes_blocks",
    "twin_of",
]
