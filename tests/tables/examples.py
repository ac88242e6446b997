"""The example data, and small made-up claims with a known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[2] / "examples" / "data"
BIRDS, BOOKS, RESTAURANTS = DATA / "birds", DATA / "books", DATA / "restaurants"


def labels(
    seed: int = 0, items: int = 60, workers: int = 8, classes: int = 3, right: float = 0.8
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Labels of workers who are right with probability `right`, and gold, as mappings of columns."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, items)
    item, worker = (axis.ravel() for axis in np.meshgrid(np.arange(items), np.arange(workers), indexing="ij"))
    wrong = (truth[item] + generator.integers(1, classes, len(item))) % classes
    label = np.where(generator.random(len(item)) < right, truth[item], wrong)
    claims = {"item": item.tolist(), "worker": [f"w{w}" for w in worker], "label": [f"c{c}" for c in label]}
    return claims, {"item": list(range(items)), "label": [f"c{c}" for c in truth]}
