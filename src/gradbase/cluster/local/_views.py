"""The views that an update of a page needs, made once: making them anew takes longer than updating a small page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gradbase.store.layout import Layout, Page
from gradbase.store.update import Updater, UpdateRule

_FRAME_GRAIN_BYTES = 64


class PlannedUpdater(Updater):
    """An `Updater` of the whole slab whose views of a page stay the same."""

    def __init__(self, layout: Layout, rule: UpdateRule, memory: Mapping[str, torch.Tensor]) -> None:
        super().__init__(layout, rule, memory)
        self._views: dict[int, tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}

    def value(self, page: Page) -> torch.Tensor:
        return self._views_of(page)[0]

    def state(self, page: Page) -> dict[str, torch.Tensor]:
        return self._views_of(page)[1]

    def _views_of(self, page: Page) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if page.number not in self._views:
            self._views[page.number] = super().value(page), super().state(page)
        return self._views[page.number]


class PlannedBlock:
    """A part of a page as an update finds it: what every lane pushed, and its value and state with their places in
    `frame`. A page that is not trained is one block, and has no place there.
    """

    def __init__(
        self, page: Page, part: slice, updater: Updater, pushed: Sequence[torch.Tensor], frame: torch.Tensor
    ) -> None:
        self.page, self._updater = page, updater
        self.numbers = page.number  # of the pages whose updates it counts, if it is the last
        self.is_trained = _is_trained(updater, page)
        self.is_last = part.stop >= page.numel
        self.value = updater.value(page)[part]
        self.state = {key: view[part] for key, view in updater.state(page).items()} if self.is_trained else {}
        self.pushed = [lane[part] for lane in pushed]
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        start = 0
        for view in (self.value, *self.state.values()) if self.is_trained else ():
            self._saved.append((view, frame[start : start + view.nbytes].view(view.dtype)))
            start += -(-view.nbytes // _FRAME_GRAIN_BYTES) * _FRAME_GRAIN_BYTES

    def save(self) -> None:
        """Copy value and state to the frame."""
        for view, saved in self._saved:
            saved.copy_(view)

    def restore(self) -> None:
        """Put back what the frame has."""
        for view, saved in self._saved:
            view.copy_(saved)

    def update(self, lanes: Sequence[int], scale: float, step: int) -> None:
        """With the sum of what the lanes pushed, in their order, times `scale`; `step` updates came before."""
        pushed = [self.pushed[lane] for lane in lanes]
        self._updater.apply_block(self.page, self.value, self.state, pushed, scale, step)


def planned_blocks(
    page: Page, updater: Updater, pushed: Sequence[torch.Tensor], frame: torch.Tensor, block_numel: int
) -> list[PlannedBlock]:
    """A page in the parts in which it is updated, [block_numel] each but the last."""
    step = block_numel if _is_trained(updater, page) else page.numel
    parts = (slice(start, min(start + step, page.numel)) for start in range(0, page.numel, step))
    return [PlannedBlock(page, part, updater, pushed, frame) for part in parts]


def _is_trained(updater: Updater, page: Page) -> bool:
    return updater.rule.settings(updater.layout.tensors[page.tensor].name) is not None
