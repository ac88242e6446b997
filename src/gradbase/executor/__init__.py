"""Run a physical plan on the user's objects, and measure what it does."""

from gradbase.executor._analyze import (
    Analyzed,
    Place,
    Progress,
    analyze,
    apply_known,
    costs_of,
    eager_extras,
    link_of,
    lookup,
    process_bytes,
    tier_of,
    traits_of,
    update_workspace_bytes,
)
from gradbase.executor._bench import random_state_kept
from gradbase.executor._engine import Engine, Planned
from gradbase.executor._feedback import corrections
from gradbase.executor._peak import PeakMeter

__all__ = [
    "Analyzed",
    "Engine",
    "PeakMeter",
    "Place",
    "Planned",
    "Progress",
    "analyze",
    "apply_known",
    "corrections",
    "costs_of",
    "eager_extras",
    "link_of",
    "lookup",
    "process_bytes",
    "random_state_kept",
    "tier_of",
    "traits_of",
    "update_workspace_bytes",
]
