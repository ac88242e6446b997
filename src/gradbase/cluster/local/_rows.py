"""Tables of rows in the slab: a lane says which rows it has a gradient for, and no others are read or updated.

For every lane and table lies a *list* behind the gradients: 64-bit words, how many rows have a gradient, then their
numbers, ascending. All other rows of the lane's gradient are zero. -1 instead of how many: any row may have one. So it
is while rows are being written, and stays if their writer dies; when a gradient came whole, over a wire or through a
codec; and when more rows have one than a list holds, of which it is then cheaper to update all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradbase.store.layout import Layout, Page, elements
from gradbase.store.sparse import combine
from gradbase.store.update import Updater, row_sums, update_rows

_ANY = -1
_SHARE_MAX = 4  # a list holds every so many-th row
_FRAME_GRAIN_BYTES = 64


def list_words(rows: int) -> int:
    """Words of a list of a table's rows."""
    return 1 + -(-rows // _SHARE_MAX)


class LaneRows:
    """A lane's gradient of one table: what a tensor is for other parameters, something to copy a gradient to.

    gradient: [rows, ...] in the slab; words: its list, int64 [list_words].
    """

    def __init__(self, gradient: torch.Tensor, words: torch.Tensor) -> None:
        self._gradient, self._flat, self._words = gradient, gradient.flatten(1), words

    def zero_(self) -> None:
        """No row has a gradient."""
        self._write(torch.empty(0, dtype=torch.int64), self._flat[:0])

    def copy_(self, gradient: torch.Tensor) -> None:
        """A dense gradient, or a sparse one of rows; of the same row in it all are summed, first to last."""
        if gradient.is_sparse and gradient.sparse_dim() == 1:
            ids, values = combine(gradient._indices()[0], gradient._values())
            self._write(ids, values.flatten(1))
        else:
            self.take_any()
            self._gradient.copy_(gradient.to_dense() if gradient.is_sparse else gradient)

    def take_any(self) -> None:
        """From here on any row may have a gradient, until the next one is copied."""
        self._words[0] = _ANY

    def _write(self, ids: torch.Tensor, values: torch.Tensor) -> None:
        known = int(self._words[0])
        self.take_any()
        if known == _ANY:
            self._flat.zero_()
        else:
            self._flat.index_fill_(0, self._words[1 : 1 + known], 0)
        self._flat.index_copy_(0, ids, values)
        if len(ids) < len(self._words):
            self._words[1 : 1 + len(ids)] = ids
            self._words[0] = len(ids)


class ShardRows:
    """A table's rows on one shard. pushed: of every lane the whole gradient, [rows, ...]; lists: theirs, as above.

    frame: the shard's, uint8, for one block of rows with its state.
    """

    def __init__(
        self,
        updater: Updater,
        pages: Sequence[Page],
        pushed: Sequence[torch.Tensor],
        lists: Sequence[torch.Tensor],
        frame: torch.Tensor,
        block_numel: int,
    ) -> None:
        layout = updater.layout
        spec = layout.tensors[pages[0].tensor]
        self.page, self.updater, self.frame = pages[0], updater, frame
        self.numbers = torch.tensor([page.number for page in pages])
        self.pushed, self._lists = [each.flatten(1) for each in pushed], lists
        self.table, self.state = _table(updater, spec.name), _state(updater, spec.name)
        self._rows_per_block = max(block_numel // spec.row_numel, 1)
        self._spans = [(page.start // spec.row_numel, page.numel // spec.row_numel) for page in pages]
        self._rows_per_page = layout.of_tensor(spec.name)[0].numel // spec.row_numel
        here = {page.number for page in pages}
        self._is_here = torch.tensor([page.number in here for page in layout.of_tensor(spec.name)])

    def blocks(self, lanes: Sequence[int]) -> list[RowBlock]:
        """What an update with these lanes changes, at least one block: the last one counts the update."""
        parts = self._rows_of(lanes).split(self._rows_per_block)
        return [RowBlock(self, rows, index + 1 == len(parts)) for index, rows in enumerate(parts)]

    def _rows_of(self, lanes: Sequence[int]) -> torch.Tensor:
        """Rows of this shard for which one of the lanes has a gradient, ascending."""
        counts = [int(self._lists[lane][0]) for lane in lanes]
        if _ANY in counts:
            return torch.cat([torch.arange(first, first + count) for first, count in self._spans])
        listed = [self._lists[lane][1 : 1 + count] for lane, count in zip(lanes, counts, strict=True)]
        rows = torch.unique(torch.cat(listed)) if len(listed) > 1 else listed[0].clone()
        return rows[self._is_here[torch.div(rows, self._rows_per_page, rounding_mode="floor")]]


class RowBlock:
    """Some rows of a table as an update finds them, with their places in the frame."""

    is_trained = True

    def __init__(self, owner: ShardRows, rows: torch.Tensor, is_last: bool) -> None:
        self._owner, self._rows, self.is_last = owner, rows, is_last
        self.page, self.numbers = owner.page, owner.numbers

    def save(self) -> None:
        """Copy value and state to the frame."""
        for view, saved in self._saved():
            torch.index_select(view, 0, self._rows, out=saved)

    def restore(self) -> None:
        """Put back what the frame has."""
        for view, saved in self._saved():
            view.index_copy_(0, self._rows, saved)

    def update(self, lanes: Sequence[int], scale: float, step: int) -> None:
        """By the arithmetic of a dense update; rows without a gradient would stay as they are."""
        owner, rows = self._owner, self._rows
        pushed = [owner.pushed[lane].index_select(0, rows) for lane in lanes]
        settings = owner.updater.rule.settings(owner.updater.layout.tensors[self.page.tensor].name)
        assert settings is not None, "what is not trained has no rows to update"
        if settings["optimizer"] == "RowwiseAdagrad":
            total = owner.updater.reduced(pushed, scale)
            update_rows(owner.table, owner.state["row_sum"], rows, total, settings["lr"], settings["eps"])
            return
        value = owner.table.index_select(0, rows)
        state = {key: view.index_select(0, rows) for key, view in owner.state.items()}
        flat = {key: view.view(-1) for key, view in state.items()}
        owner.updater.apply_block(self.page, value.view(-1), flat, [each.view(-1) for each in pushed], scale, step)
        owner.table.index_copy_(0, rows, value)
        for key, view in state.items():
            owner.state[key].index_copy_(0, rows, view)

    def _saved(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Value and state, whole, each with the place of these rows in the frame."""
        found, start, count = [], 0, len(self._rows)
        for view in (self._owner.table, *self._owner.state.values()):
            nbytes = count * view[:1].nbytes
            place = self._owner.frame[start : start + nbytes].view(view.dtype).view(count, *view.shape[1:])
            found.append((view, place))
            start += -(-nbytes // _FRAME_GRAIN_BYTES) * _FRAME_GRAIN_BYTES
        return found


def _table(updater: Updater, name: str, key: str = "values") -> torch.Tensor:
    """A table's values, or its state of that shape, [rows, elements of a row], in the slab."""
    layout: Layout = updater.layout
    spec, pages = layout.spec(name), layout.of_tensor(name)
    return elements(updater.memory[key], pages[0].offset, spec.numel, spec.dtype).view(spec.shape[0], -1)


def _state(updater: Updater, name: str) -> Mapping[str, Any]:
    """A table's state by key, of which every row has something."""
    keys = updater.rule.state_keys(name)
    if keys == ("row_sum",):
        return {"row_sum": row_sums(updater.layout, updater.memory["row_sum"], name, None)}
    return {key: _table(updater, name, key) for key in keys}
