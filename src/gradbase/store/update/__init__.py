"""The server's optimizer: torch.optim's arithmetic, page by page, on memory that others may share."""

from gradbase.store.update._rowwise import RowwiseAdagrad, update_rows
from gradbase.store.update._rule import Settings, UpdateRule, rule_of, settings_of
from gradbase.store.update._state import load_state_dict, state_dict_of
from gradbase.store.update._updater import BLOCK_NUMEL, Updater, allocate, memory_plan, row_sums

__all__ = [
    "BLOCK_NUMEL",
    "RowwiseAdagrad",
    "Settings",
    "UpdateRule",
    "Updater",
    "allocate",
    "load_state_dict",
    "memory_plan",
    "row_sums",
    "rule_of",
    "settings_of",
    "state_dict_of",
    "update_rows",
]
