"""The server's hands: sum the lanes of a page and apply the optimizer to it, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from gradbase.common.errors import UsageError
from gradbase.store.layout import ITEM_BYTES, Layout, Page, TensorSpec, elements, page_view
from gradbase.store.update._kernels import KERNELS, Kernel, State, update_directed
from gradbase.store.update._rowwise import accumulator_dtype, update_rows
from gradbase.store.update._rule import Settings, UpdateRule

if TYPE_CHECKING:
    from gradbase.store.layout import Memory

# A page is summed and updated in blocks, so that what the sum leaves in the cache the optimizer finds there. Smaller
# blocks cost more in calls than they save; whole tensors take twice as long.
BLOCK_NUMEL = 1 << 17
ROW_OPTIMIZERS = ("SGD", "Adagrad", "RowwiseAdagrad")
_ACCUMULATOR_BYTES_MAX = 8
VALUES = "values"
STEPS = "steps"
_GRAIN_NUMEL = 128  # the vector loops of torch's kernels take a divisor of it at once


def memory_plan(layout: Layout, rule: UpdateRule, shard: int | None = None) -> dict[str, int]:
    """Bytes of each memory that an `Updater` needs: "values", one for every state key, and "steps".

    All but "steps" have the layout's offsets: those of the slab, or of the home of one shard. "steps" counts the
    updates of each page, int64 [pages].
    """
    nbytes = layout.slab_nbytes if shard is None else layout.home_nbytes[shard]
    keys = (VALUES, *rule.all_state_keys)
    return {**dict.fromkeys(keys, nbytes), STEPS: 8 * len(layout.pages)}


def allocate(layout: Layout, rule: UpdateRule, shard: int | None = None) -> dict[str, torch.Tensor]:
    """Zeroed memory of this process for `memory_plan`; what no page touches is never committed by the system."""
    plan = memory_plan(layout, rule, shard)
    return {key: torch.zeros(nbytes, dtype=torch.uint8) for key, nbytes in plan.items()}


class Updater:
    """Applies an update rule to the pages of one shard (its home) or of all of them (the slab), in `memory`.

    Not thread-safe for the same page; pages are independent of each other.
    """

    def __init__(
        self, layout: Layout, rule: UpdateRule, memory: Mapping[str, Memory], *, shard: int | None = None
    ) -> None:
        self.layout, self.rule, self.memory, self.shard = layout, rule, memory, shard
        self.steps = elements(memory[STEPS], 0, len(layout.pages), "int64")
        self._scratch: dict[torch.dtype, torch.Tensor] = {}
        for spec in layout.tensors:
            _check_kind(spec, rule.settings(spec.name))

    def initialize(self) -> None:
        """Set fresh state to what torch.optim starts from; once, before the first update of zeroed memory."""
        for page in self.pages:
            settings = self._settings(page)
            if settings and settings.get("initial_accumulator_value"):
                for view in self.state(page).values():
                    view.fill_(settings["initial_accumulator_value"])

    @property
    def pages(self) -> tuple[Page, ...]:
        return self.layout.pages if self.shard is None else self.layout.of_shard(self.shard)

    def value(self, page: Page) -> torch.Tensor:
        """A page's elements, [numel], a view into the memory."""
        return page_view(self.layout, self.memory[VALUES], page, home=self.shard is not None)

    def state(self, page: Page) -> dict[str, torch.Tensor]:
        """A page's optimizer state by key, views of [numel] ("row_sum": [rows of the page])."""
        name = self.layout.tensors[page.tensor].name
        return {key: self._state(page, key) for key in self.rule.state_keys(name)}

    def apply(self, number: int, gradients: Sequence[torch.Tensor], scale: float | None = None) -> None:
        """Update a page from the gradients of its lanes, in order: ((g0 + g1) + g2 ...) * scale, then the optimizer.

        gradients: [numel] each, of the page's dtype; not changed. scale: 1 / lanes unless given; a scale of 1 is no
        operation. A page of a tensor that is not trained is refused: it is assigned.
        """
        page = self.layout.pages[number]
        assert all(gradient.numel() == page.numel for gradient in gradients), "a gradient has the size of its page"
        scale = 1 / len(gradients) if scale is None else scale
        value, state, step = self.value(page), self.state(page), int(self.steps[number])
        with torch.no_grad():
            if "row_sum" in state:
                self._apply_rowwise(page, value, state["row_sum"], gradients, scale)
                self.steps[number] = step + 1
                return
            for start in range(0, page.numel, BLOCK_NUMEL):
                block = slice(start, min(start + BLOCK_NUMEL, page.numel))
                parts = {key: view[block] for key, view in state.items()}
                self.apply_block(page, value[block], parts, [gradient[block] for gradient in gradients], scale, step)
        self.steps[number] = step + 1

    def _apply_rowwise(
        self, page: Page, value: torch.Tensor, sums: torch.Tensor, gradients: Sequence[torch.Tensor], scale: float
    ) -> None:
        """Of rows that all have a gradient of zero nothing changes."""
        settings = self._settings(page)
        assert settings is not None, "what has row sums is trained"
        total = self.reduced([gradient.view(len(sums), -1) for gradient in gradients], scale)
        rows = total.any(dim=1).nonzero().flatten()
        update_rows(value.view(len(sums), -1), sums, rows, total[rows], settings["lr"], settings["eps"])

    def apply_block(
        self,
        page: Page,
        value: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        gradients: Sequence[torch.Tensor],
        scale: float,
        step: int,
    ) -> None:
        """What `apply` does, to at most BLOCK_NUMEL elements of a page: views of its value, its state and its lanes'
        gradients. `step` counts the updates before this one; whoever calls this counts them.
        """
        name = self.layout.tensors[page.tensor].name
        settings = self.rule.settings(name)
        assert settings is not None, f"{name} is not trained"
        kernel = update_directed if name in self.rule.directed else KERNELS[settings["optimizer"]]
        if self.layout.tensors[page.tensor].kind == "rows" and value.numel() % _GRAIN_NUMEL:
            kernel = _in_grains(kernel)
        kernel(settings, value, self.reduced(gradients, scale), state, step)

    def reduce(self, number: int, gradients: Sequence[torch.Tensor], scale: float | None = None) -> torch.Tensor:
        """((g0 + g1) + g2 ...) * scale in new memory, [numel]; `apply(number, [it], 1.0)` goes on as `apply` does."""
        scale = 1 / len(gradients) if scale is None else scale
        total = torch.empty_like(gradients[0])
        for start in range(0, total.numel(), BLOCK_NUMEL):
            block = slice(start, start + BLOCK_NUMEL)
            total[block].copy_(self.reduced([gradient[block] for gradient in gradients], scale))
        return total

    def assign(self, number: int, value: torch.Tensor) -> None:
        """Overwrite a page, [numel]: buffers of the model, and parameters when a store is filled or recovered."""
        self.value(self.layout.pages[number]).copy_(value)

    def set_settings(self, groups: Sequence[Settings]) -> None:
        """Change the numbers of the parameter groups, as a learning rate schedule does between steps."""
        self.rule = self.rule.with_settings(tuple(groups))

    def _settings(self, page: Page) -> Settings | None:
        return self.rule.settings(self.layout.tensors[page.tensor].name)

    def _state(self, page: Page, key: str) -> torch.Tensor:
        if key == "row_sum":
            return _row_sums_of_page(self.layout, self.memory[key], page, self.shard)
        return page_view(self.layout, self.memory[key], page, home=self.shard is not None)

    def reduced(self, lanes: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
        """The lanes' sum in order, times `scale`, in scratch memory; one unscaled lane is its own sum."""
        if len(lanes) == 1 and scale == 1:
            return lanes[0]
        total = self._scratch_of(lanes[0])
        if len(lanes) == 1:
            return torch.mul(lanes[0], scale, out=total)
        torch.add(lanes[0], lanes[1], out=total)
        for lane in lanes[2:]:
            total.add_(lane)
        return total if scale == 1 else total.mul_(scale)

    def _scratch_of(self, like: torch.Tensor) -> torch.Tensor:
        known = self._scratch.get(like.dtype)
        if known is None or known.numel() < like.numel():
            known = self._scratch[like.dtype] = torch.empty(max(BLOCK_NUMEL, like.numel()), dtype=like.dtype)
        flat = known[: like.numel()]
        return flat if like.dim() == 1 else flat.view(like.shape)


def _in_grains(kernel: Kernel) -> Kernel:
    """The kernel on a whole number of grains, for rows: how many are updated at once must not change their bits.

    What is left over when a kernel's vector loop has ended is not rounded in half precision as the loop does it.
    """

    def run(settings: Settings, value: torch.Tensor, gradient: torch.Tensor, state: State, step: int) -> None:
        room = (0, -value.numel() % _GRAIN_NUMEL)
        padded, states = F.pad(value, room), {key: F.pad(view, room) for key, view in state.items()}
        kernel(settings, padded, F.pad(gradient, room), states, step)
        for view, changed in ((value, padded), *((state[key], states[key]) for key in state)):
            view.copy_(changed[: view.numel()])

    return run


def row_sums(layout: Layout, memory: Memory, name: str, shard: int | None) -> torch.Tensor:
    """The accumulators of a table's rows, [rows] of the slab or of a shard, packed from where the table starts."""
    spec = layout.spec(name)
    pages = [page for page in layout.of_tensor(name) if shard is None or page.shard == shard]
    rows = sum(page.numel for page in pages) // spec.row_numel
    offset = (pages[0].offset if shard is None else pages[0].place) if pages else 0
    dtype = accumulator_dtype(getattr(torch, spec.dtype))
    return elements(memory, offset, rows, str(dtype).removeprefix("torch."))


def _row_sums_of_page(layout: Layout, memory: Memory, page: Page, shard: int | None) -> torch.Tensor:
    spec = layout.tensors[page.tensor]
    first = layout.first_row(page, home=shard is not None)
    return row_sums(layout, memory, spec.name, shard)[first : first + page.numel // spec.row_numel]


def _check_kind(spec: TensorSpec, settings: Settings | None) -> None:
    """Whether the optimizer fits the way a tensor is pushed: UsageError if not."""
    if settings is None:
        return
    optimizer = settings["optimizer"]
    if spec.kind == "buffer":
        raise UsageError(f"{spec.name} is a buffer and cannot be trained by {optimizer}")
    if spec.kind == "parameter" and optimizer == "RowwiseAdagrad":
        raise UsageError(
            f"RowwiseAdagrad trains {spec.name}, which is not pushed by row",
            f"declare it with rows=[{spec.name!r}], or train it with torch.optim.Adagrad",
        )
    if spec.kind == "rows":
        _check_rows(spec, settings)


def _check_rows(spec: TensorSpec, settings: Settings) -> None:
    """What is pushed by row is updated only where it was used, so nothing may depend on the steps in between."""
    optimizer = settings["optimizer"]
    between = [key for key in ("momentum", "weight_decay", "lr_decay", "maximize") if settings.get(key)]
    if optimizer not in ROW_OPTIMIZERS or between:
        culprit = f"{optimizer} with {between[0]}={settings[between[0]]}" if between else optimizer
        raise UsageError(
            f"{culprit} cannot train {spec.name}, which is pushed by row",
            f"use one of {', '.join(ROW_OPTIMIZERS)} with neither momentum, weight decay nor lr_decay, "
            "or push it as a whole: an embedding with sparse=False",
        )
    if spec.row_numel * ITEM_BYTES[spec.dtype] < _ACCUMULATOR_BYTES_MAX:
        raise UsageError(f"a row of {spec.name} is smaller than 8 bytes", "push it as a whole")
