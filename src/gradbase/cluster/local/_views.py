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


class PlannedPage:
    """A page as an update finds it: what every lane pushed, and its value and state with their places in `frame`."""

    def __init__(self, page: Page, updater: Updater, pushed: Sequence[torch.Tensor], frame: torch.Tensor) -> None:
        self.number = page.number
        self.is_trained = updater.rule.settings(updater.layout.tensors[page.tensor].name) is not None
        self.pushed = pushed
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        start = 0
        for view in (updater.value(page), *updater.state(page).values()) if self.is_trained else ():
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
