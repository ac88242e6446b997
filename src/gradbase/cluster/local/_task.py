"""What a forked worker runs: the recipe's model over the slab, at the steward's service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gradbase.cluster.channel import Channel
from gradbase.cluster.codecs import parse_codecs
from gradbase.cluster.local._memory import LocalMemory, Map, SharedPages
from gradbase.cluster.local._slab import Slab
from gradbase.cluster.servant import serve
from gradbase.cluster.worker import BatchStream, Learner, Recipe, place_of
from gradbase.common.errors import GradbaseError
from gradbase.common.malloc import keep_freed_memory
from gradbase.store.layout import Layout
from gradbase.store.update import UpdateRule


@dataclass
class Task:
    """Pickled to the fork server. `build` makes the recipe afresh, the same in every process."""

    build: Callable[[], Recipe]
    layout: Mapping[str, Any]
    rule: Mapping[str, Any]
    lanes: int
    shared: bool
    threads: int
    memory: str | int | None = None
    codec: str = "none"
    recipe: Recipe | None = field(default=None, repr=False)

    def map(self) -> Map:
        layout, rule = Layout.from_json(self.layout), UpdateRule.from_json(self.rule)
        codecs = parse_codecs(self.codec).of_pages(layout, rule, self.lanes, together=self.shared)
        return Map(layout, rule, self.lanes, codecs, residuals=self.shared)

    def warm(self) -> None:
        """In the fork server, once: so that a fork has torch, the recipe and the model."""
        self.recipe = self.build()

    def serve(self, fds: list[int]) -> None:
        """In a forked worker: channel and slab."""
        torch.set_num_threads(self.threads)
        channel = Channel.of_descriptor(fds[0])
        if self.memory is None:
            keep_freed_memory()
        try:
            assert self.recipe is not None
            where = self.map()
            slab = Slab(fds[1])
            serve(channel, *equip(self.recipe, slab, where, shared=self.shared, budget=self.memory))
        except GradbaseError as error:
            channel.send("failed", error.problem, *error.remedies)
        except Exception as error:
            channel.send("failed", f"a worker failed: {type(error).__name__}: {error}", *place_of(error))


def equip(
    recipe: Recipe, slab: Slab, where: Map, *, shared: bool, budget: str | int | None
) -> tuple[Learner, LocalMemory]:
    """What a servant needs, in any process that reaches the slab. `budget`: the memory of its step."""
    memory = LocalMemory(recipe.model, SharedPages(slab, where), where, shared=shared)
    stream = BatchStream(recipe.batches, recipe.random_state, 2 * where.lanes)
    return Learner(recipe, stream, budget), memory
