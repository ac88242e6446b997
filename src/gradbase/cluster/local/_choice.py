"""How a store logs and how often it takes a checkpoint, from what this machine was measured to do."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gradbase.cluster.local._memory import LocalMemory, Map, SharedPages
from gradbase.cluster.storage import choose_logging
from gradbase.cluster.worker import Learner, StreamEnded
from gradbase.store.files import DiskRate
from gradbase.store.log import SchemeChoice, StepCosts
from gradbase.store.update import Updater

_PAGES = 16  # so many are enough to know how long all of them take


@dataclass(frozen=True)
class StoreChoice:
    """What was chosen and why; `logging` is None where no update is logged."""

    logging: str | None
    logging_reason: str | None
    checkpoint_interval_us: float
    checkpoint_reason: str


def measured_choice(
    learner: Learner, memory: LocalMemory, pages: SharedPages, where: Map, *, workers: int, disk: DiskRate
) -> SchemeChoice:
    """The scheme for a bsp job. Computes the gradient of the first micro-batch twice, and keeps nothing of it."""
    nbytes = where.layout.slab_nbytes
    gradient_us = _gradient_us(learner, memory)
    apply_us = _apply_us(pages.updater) / workers
    step_us = gradient_us * where.lanes / workers + apply_us
    pack_us = _timed_us(lambda: zlib.crc32(pages.pushed_bytes(0, 0))) * where.lanes * where.layout.shard_count
    costs = StepCosts(step_us, where.lanes * nbytes, pack_us, apply_us)
    return choose_logging(costs, disk, "bsp", nbytes * (1 + len(where.rule.all_state_keys)))


def _gradient_us(learner: Learner, memory: LocalMemory) -> float:
    """Of the second time: the first plans, allocates, and warms caches."""

    def gradient() -> None:
        memory.before(0, 0)
        learner.gradient(0, batch, memory.buffers(0))

    try:
        batch = learner.batch(0)
    except StreamEnded:
        return 1.0  # there is nothing to train on
    gradient()
    return _timed_us(gradient)


def _apply_us(updater: Updater) -> float:
    """Of all pages that are trained as a whole, from some; they are as they were afterwards."""
    names = [spec.name for spec in updater.layout.tensors]
    trained = [
        page
        for page in updater.layout.pages
        if updater.rule.settings(names[page.tensor]) is not None and updater.layout.tensors[page.tensor].kind != "rows"
    ]
    some, spent_us = trained[:_PAGES], 0.0
    for page in some:
        views = [updater.value(page), *updater.state(page).values()]
        saved, steps = [view.clone() for view in views], int(updater.steps[page.number])
        gradient = views[0].clone()
        spent_us += _timed_us(partial(updater.apply, page.number, [gradient]))
        updater.steps[page.number] = steps
        for view, value in zip(views, saved, strict=True):
            view.copy_(value)
    return spent_us * sum(page.nbytes for page in trained) / max(sum(page.nbytes for page in some), 1)


def _timed_us(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e6
