"""Crowdsourced truth: what is true of each item, how good each worker is, and why.

    claims = Claims.from_columns(item, worker, label)
    result = infer(claims)                        # with features: infer(claims, Features(text={...}))
    result.value, result.probability, result.workers.quality, result.why()
    infer(more, state=result.state)               # goes on, does not start over
    next_labels(result, 100)                      # the labels most worth buying
"""

from gradbase.tables.crowd._classifier import Classifier
from gradbase.tables.crowd._infer import infer
from gradbase.tables.crowd._next import next_labels
from gradbase.tables.crowd._state import State
from gradbase.tables.crowd._types import (
    NONE,
    Claims,
    Config,
    Copies,
    Features,
    Kind,
    Purchases,
    Result,
    Why,
    Workers,
)

__all__ = [
    "NONE",
    "Claims",
    "Classifier",
    "Config",
    "Copies",
    "Features",
    "Kind",
    "Purchases",
    "Result",
    "State",
    "Why",
    "Workers",
    "infer",
    "next_labels",
]
