"""Which part of the region a kernel touches: found by running it there (see `_packing.py`)."""

from __future__ import annotations

from dataclasses import replace

from gradbase.buffer import AllocationLog, Frames, Runs, total_bytes, union
from gradbase.capture import Call, Program
from gradbase.executor._bench import Bench, materialized
from gradbase.executor._lowering import served_lines
from gradbase.executor._packing import pays
from gradbase.executor._traits import (
    Layout,
    Packing,
    Trait,
    Workspace,
    extent_bytes,
    pack_workspace,
    packed_arguments,
)
from gradbase.executor._windows import Scope
from gradbase.ir.logical import Tensor


class RegionProbe:
    """Runs kernels whose arguments are laid out on a bench, with a hidden result or a packed argument in the region."""

    def __init__(self, program: Program, bench: Bench, frames: Frames) -> None:
        self._program = program
        self._bench = bench
        self._frames = frames

    def still_touches(self, call: Call, trait: Trait) -> bool:
        """Whether a kernel touches no more than its trait says, which may come from another machine."""
        packing = trait.packing
        if packing is None or trait.served is None:
            return True
        index = None if packing.result is None else trait.served[packing.result]
        return union(packing.touched, self._touched(call, packing.nbytes, index)) == packing.touched

    def packed(self, call: Call, trait: Trait, log: AllocationLog) -> Trait:
        """The trait of a kernel whose results are allocations of its own, with what it does in the region."""
        return self._with_result_packed(call, self._with_arguments_unpacked(call, trait, log), log)

    def _with_result_packed(self, call: Call, trait: Trait, log: AllocationLog) -> Trait:
        """The hidden result, if there is a large one of which the kernel touches a part, kept packed.

        Its frame is filled after the kernel has run: until then it has room for temporaries.
        """
        assert trait.served is not None
        for result, (value, index, layout) in enumerate(zip(call.results, trait.served, trait.layouts, strict=True)):
            if value is None or index is None or layout is None or extent_bytes(self._program.values[value]) > 0:
                continue
            nbytes = extent_bytes(Tensor(-1, *layout))
            touched = self._touched(call, nbytes, index)
            if layout[0] == "uint8" and pays(nbytes, touched):
                kept_bytes = total_bytes(touched)
                overlay, rest = _split(log, kept_bytes)
                packing = Packing(nbytes, touched, kept_bytes, result=result, kept=touched, overlay=overlay.places)
                packed: Layout = ("uint8", (kept_bytes,), (1,))
                layouts = (*trait.layouts[:result], packed, *trait.layouts[result + 1 :])
                return replace(trait, layouts=layouts, workspace=rest, packing=packing)
        return trait

    def _with_arguments_unpacked(self, call: Call, trait: Trait, log: AllocationLog) -> Trait:
        """For a kernel that is given a packed argument: what it touches, and temporaries in the argument's frame."""
        packed = packed_arguments(self._program, call)
        if not packed:
            return trait
        kept = [self._program.packed[value] for value in packed]
        nbytes = max(each.nbytes for each in kept)
        touched = union(self._touched(call, nbytes, None), *(each.runs for each in kept))
        overlay, rest = _split(log, total_bytes(kept[0].runs))
        packing = Packing(nbytes, touched, sum(total_bytes(each.runs) for each in kept), overlay=overlay.places)
        return replace(trait, workspace=rest, packing=packing)

    def _touched(self, call: Call, nbytes: int, index: int | None) -> Runs:
        """What a kernel touches of the region, where its allocation of this index is, or a packed argument."""
        region = self._bench.region(nbytes)
        windows = self._bench.windows(self._program, Scope())
        args = materialized(call.args, windows)
        kwargs = {k: materialized(v, windows) for k, v in call.kwargs.items()}
        planned = [] if index is None else [(index, region.address, nbytes)]
        scope = Scope()
        run = scope.bind("run", lambda: call.target(*args, **kwargs))
        lines = served_lines([f"{run}()"], planned, scope, self._frames, str(call.target))
        region.clear()
        exec("\n".join(lines), scope.names)
        return region.touched()


def _split(log: AllocationLog, limit_bytes: int) -> tuple[Workspace, Workspace]:
    """Temporaries that fit into a frame of so many bytes, and the others."""
    overlay = pack_workspace(log.allocations, limit_bytes=limit_bytes)
    there = {index for index, _, _ in overlay.places}
    return overlay, pack_workspace(a for a in log.allocations if a.index not in there)
