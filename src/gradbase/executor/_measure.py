"""ANALYZE: every operator of a plan is run and timed on this device the first time it is seen.

An operator is measured as it will be executed: results into an arena whose pages are already there, in the
way that its lowering says. Beside the time, a run tells what tracing cannot know: memory that a kernel takes
beside its results, results that are larger or laid out otherwise than the fake kernel says (an LSTM's
workspace), and which of its allocations are its results.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import optim
from torch.profiler import ProfilerActivity, profile

from gradbase.buffer import AllocationLog, Frames
from gradbase.capture import BlockStep, Call, PartialStep, Program, Update, state_of_new, takes_blocks, twin_of
from gradbase.catalog import OperatorStatistics
from gradbase.common.errors import CaptureError
from gradbase.common.malloc import release_freed_memory
from gradbase.executor._bench import (
    ALIGNMENT_BYTES,
    Bench,
    allocates_by_value,
    materialized,
    random_state_kept,
    widest_bytes,
)
from gradbase.executor._lowering import Lowering, choose, emit
from gradbase.executor._peak import reset_resident_peak, resident_bytes
from gradbase.executor._touched import RegionProbe
from gradbase.executor._traits import Trait, Workspace, apply_trait, layout_of, pack_workspace, served_indices
from gradbase.executor._windows import Scope
from gradbase.ir.logical import Operator

_LEAST_RUNS, _MOST_RUNS = 3, 15
_ENOUGH_US = 40_000.0
_PATIENCE = 4  # times as long, where other processes disturb
# RAdam waits so many steps for its second moment, and then needs more memory.
_UNSTEADY_STEPS = {optim.RAdam: 6}
# The kernel counts pages per processor and adds them up now and then: less than this is noise.
_SEEN_IN_RESIDENT_SET_BYTES = 1 << 20


class Analyzer:
    """Measures the operators of one program, in order, and corrects the program by what it finds."""

    def __init__(
        self,
        program: Program,
        optimizer: optim.Optimizer,
        parameters: Mapping[str, torch.Tensor],
        frames: Frames | None,
        device: torch.device,
    ) -> None:
        self._program = program
        self._optimizer = optimizer
        self._parameters = parameters
        self._frames = frames
        self._device = device
        self._bench = Bench(widest_bytes(program), frames, device)
        self._probe = None if frames is None else RegionProbe(program, self._bench, frames)

    def measure(self, operator: Operator) -> OperatorStatistics:
        """Run and time one operator of the program. Allocates its arguments and results, no more."""
        call = self._program.calls.get(operator.id)
        with random_state_kept(self._device):
            if call is None:
                with torch.no_grad():
                    return self._measure_macro(operator)
            # Gradients stay enabled though nothing requires one: recurrent kernels look at the mode to decide
            # whether to leave what the backward pass needs.
            with torch.enable_grad(), _refused_by(operator):
                return self._measure_call(operator, call)

    def warm_up(self, operator: Operator, trait: Trait) -> None:
        """Run a kernel once, so that what its library builds and keeps is there before memory is promised."""
        call = self._program.calls.get(operator.id)
        if call is None:
            return
        with random_state_kept(self._device), torch.enable_grad():
            self._bench.lay_out(self._program, call, trait.workspace_bytes)
            self._compiled(call, choose(call, trait))()

    def packs_alike(self, operator: Operator, trait: Trait) -> bool:
        """Whether a kernel still touches no more of the region than when it was measured."""
        call = self._program.calls.get(operator.id)
        if call is None or self._probe is None or trait.packing is None:
            return True
        with random_state_kept(self._device), torch.enable_grad():
            self._bench.lay_out(self._program, call)
            return self._probe.still_touches(call, trait)

    def _measure_call(self, operator: Operator, call: Call) -> OperatorStatistics:
        self._bench.lay_out(self._program, call)
        trait, scratch_bytes = self._discover(call)
        apply_trait(self._program, operator, trait)
        self._bench.lay_out(self._program, call, trait.workspace_bytes)
        lowering = choose(call, trait)
        scratch_bytes = max(scratch_bytes, self._unseen_bytes(self._compiled(call, lowering)))
        return self._statistics(
            operator, _timed(self._compiled(call, lowering), self._device), scratch_bytes, trait, lowering.way
        )

    def _statistics(
        self, operator: Operator, times_us: list[float], scratch_bytes: int, trait: Trait, way: str
    ) -> OperatorStatistics:
        return OperatorStatistics.from_samples(
            operator.target,
            operator.signature,
            times_us,
            scratch_bytes=scratch_bytes,
            details=trait.encoded(way),
            flops=operator.flops,
            moved_bytes=operator.moved_bytes,
        )

    def _compiled(self, call: Call, lowering: Lowering) -> Callable[[], None]:
        scope = Scope()
        lines = emit(call, lowering, self._bench.windows(self._program, scope), scope, self._frames)
        source = "def run():\n" + "\n".join(f"    {line}" for line in (lines or ["pass"]))
        exec(source, scope.names)
        return scope.names["run"]  # type: ignore[no-any-return]

    def _discover(self, call: Call) -> tuple[Trait, int]:
        """Run the kernel as it would be run, and look at what it allocates and returns: trait, scratch bytes."""
        lowering = choose(call, None)
        if lowering.way != "copied":
            with contextlib.suppress(RuntimeError):  # some out= forms want to resize: then as the kernel allocates
                log = self._recorded(self._compiled(call, lowering))[1]
                workspace = pack_workspace(log.allocations) if self._foreseen(call) else Workspace()
                return Trait(workspace=workspace), self._scratch_bytes(log, workspace)
        return self._discover_functional(call)

    def _discover_functional(self, call: Call) -> tuple[Trait, int]:
        windows = self._bench.windows(self._program, Scope())
        args = materialized(call.args, windows)
        kwargs = {k: materialized(v, windows) for k, v in call.kwargs.items()}
        results, log = self._recorded(lambda: call.target(*args, **kwargs))
        several = isinstance(results, (tuple, list))
        tensors = [r if isinstance(r, torch.Tensor) else None for r in (results if several else [results])]
        layouts = tuple(None if t is None else layout_of(t) for t in tensors)
        served = served_indices(self._program, call.results, tensors, log) if self._foreseen(call) else None
        workspace = pack_workspace(log.allocations) if self._foreseen(call) else Workspace()
        copied_bytes = 0 if served is not None else sum(_nbytes(t) for t in tensors)
        trait = Trait(served, layouts, workspace, native=False)
        scratch_bytes = self._scratch_bytes(log, workspace) + copied_bytes
        del results, tensors
        if served is None or self._probe is None:
            return trait, scratch_bytes
        return self._probe.packed(call, trait, log), scratch_bytes

    def _foreseen(self, call: Call) -> bool:
        """Whether the kernel asks for memory the same way every time, so that it can be given frames."""
        return self._frames is not None and not allocates_by_value(call.target)

    def _scratch_bytes(self, log: AllocationLog, workspace: Workspace) -> int:
        return _unplanned_bytes(log, workspace) if self._frames else log.peak_extra_bytes

    def _unseen_bytes(self, run: Callable[[], Any]) -> int:
        """What a kernel takes past torch's allocator: libraries call malloc themselves. From the resident set."""
        if self._device.type == "cuda":
            return 0
        run()
        release_freed_memory()  # what earlier runs left in the heap would serve this one unseen
        held_bytes = resident_bytes("VmRSS")
        reset_resident_peak()
        run()
        grown_bytes = (resident_bytes("VmHWM") or 0) - (held_bytes or 0)
        return grown_bytes if grown_bytes >= _SEEN_IN_RESIDENT_SET_BYTES else 0

    def _recorded(self, run: Callable[[], Any]) -> tuple[Any, AllocationLog]:
        """The result of a run, after one that lets the kernel build its caches, and what it allocated."""
        run()
        return self._frames.record(run) if self._frames else _observed(run, self._device)

    def _measure_macro(self, operator: Operator) -> OperatorStatistics:
        update = self._program.tail.updates.get(operator.id)
        if update is None:
            return self._statistics(operator, _timed(self._touch(operator), self._device), 0, Trait(), "macro")
        run = self._update(update)
        if self._frames is None:
            run()
            _, log = _observed(run, self._device)
            return self._statistics(operator, _timed(run, self._device), log.peak_bytes, Trait(), "macro")
        creating, steady = self._both_logs(run)
        blocks = self._in_blocks(run, update)
        whole_bytes = pack_workspace(steady.allocations).nbytes
        if blocks is not None:
            run.optimizer.state = state_of_new(run.optimizer, run.parameters)
            run = blocks
            creating, steady = self._both_logs(run)
        trait = Trait(
            workspace=pack_workspace(steady.allocations),
            first=pack_workspace(creating.allocations),
            created=() if blocks else _created(run, creating),
            blocks=blocks is not None,
            whole_bytes=whole_bytes,
        )
        scratch_bytes = max(_unplanned_bytes(steady, trait.workspace), _unplanned_bytes(creating, trait.first))
        served = self._served(run, trait, self._bench.spare(trait.workspace_bytes))
        return self._statistics(operator, _timed(served, self._device), scratch_bytes, trait, "macro")

    def _both_logs(self, run: Callable[[], None]) -> tuple[AllocationLog, AllocationLog]:
        """What an update allocates when it makes the optimizer's state, and afterwards."""
        _, creating = self._frames.record(run)
        for _ in range(_UNSTEADY_STEPS.get(type(self._optimizer), 1)):
            run()
        _, steady = self._frames.record(run)
        return creating, steady

    def _in_blocks(self, whole: PartialStep, update: Update) -> BlockStep | None:
        """The update in blocks, of the same stand-in, if it gives the same bits."""
        (parameter, *others) = whole.parameters
        if others or not takes_blocks(self._optimizer, self._parameters[update.names[0]]):
            return None
        return BlockStep(whole.optimizer, parameter)

    def _served(self, run: Callable[[], None], trait: Trait, address: int) -> Callable[[], None]:
        """The update with its temporaries where it finds them, as the executor runs it (see `_macros._Arms`)."""
        if not trait.workspace.places:
            return run
        assert self._frames is not None
        frames, places = self._frames, trait.workspace.places
        prepared = frames.prepare((index, address + offset, nbytes) for index, nbytes, offset in places)

        def served() -> None:
            frames.expect(prepared)
            try:
                run()
            finally:
                frames.disarm()

        return served

    def _update(self, update: Update) -> PartialStep:
        """The optimizer's own step on stand-ins of the same shapes, so that no parameter changes."""
        stand_ins = [self._parameters[name] for name in update.names]
        self._bench.reserve(2 * sum(p.numel() * p.element_size() + ALIGNMENT_BYTES for p in stand_ins))
        trial, copies = _trial(self._optimizer, stand_ins, self._bench)
        return PartialStep(trial, copies)

    def _touch(self, operator: Operator) -> Callable[[], None]:
        """Clip and accumulate: as much memory traffic as they make (two reads and a write)."""
        nbytes = sum(self._program.plan.storages[s].nbytes for s in operator.mutates)
        self._bench.reserve(2 * nbytes + 2 * ALIGNMENT_BYTES)
        left = self._bench.floats(0, nbytes // 4)
        right = self._bench.floats(nbytes + ALIGNMENT_BYTES - nbytes % ALIGNMENT_BYTES, nbytes // 4)

        def run() -> None:
            left.add_(right)

        return run


@contextlib.contextmanager
def _refused_by(operator: Operator) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        place = " of ".join(filter(None, (operator.source, operator.module)))
        raise CaptureError(
            f"{operator.target} ({place or 'the step'}) cannot be measured: {str(error).strip().splitlines()[0]}",
            "operators are measured with made-up numbers, which this one does not take; use another in its place",
        ) from error


def _trial(
    optimizer: optim.Optimizer, parameters: Sequence[torch.Tensor], bench: Bench
) -> tuple[Any, list[torch.Tensor]]:
    by_id: dict[int, torch.Tensor] = {}
    position = 0
    for parameter in parameters:
        nbytes = parameter.numel() * parameter.element_size()
        pair = []
        for _ in range(2):
            pair.append(bench.window(position, parameter))
            position += -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        by_id[id(parameter)] = torch.nn.Parameter(pair[0])
        by_id[id(parameter)].grad = pair[1]
    trial = twin_of(optimizer)
    trial.state = state_of_new(optimizer, list(by_id.values()))
    trial.param_groups = [
        {**g, "params": [by_id[id(p)] for p in g["params"] if id(p) in by_id]} for g in optimizer.param_groups
    ]
    return trial, list(by_id.values())


def _created(step: PartialStep, log: AllocationLog) -> tuple[tuple[str, int], ...]:
    """Which allocations of its first run are the state of an update of one parameter, as (key, index)."""
    if len(step.state) != 1:
        return ()
    (state,) = step.state.values()
    found = [(key, log.index_of(t.data_ptr())) for key, t in state.items() if isinstance(t, torch.Tensor)]
    return tuple((key, index) for key, index in found if index is not None)


def _nbytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.untyped_storage().nbytes()


def _timed(run: Callable[[], Any], device: torch.device) -> list[float]:
    """Runs until the times add up to enough, after one run that warms caches.

    A run during which the system gave a core to another process says how busy the machine is, not how long the operator
    takes: it counts only where enough others cannot be had.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else _no_wait
    run()
    wait()
    times_us: list[float] = []
    undisturbed_us: list[float] = []
    while not _enough(undisturbed_us, _ENOUGH_US) and not _enough(times_us, _PATIENCE * _ENOUGH_US):
        switches, start = _taken_cores(), time.perf_counter()
        run()
        wait()
        times_us.append((time.perf_counter() - start) * 1e6)
        if _taken_cores() == switches:
            undisturbed_us.append(times_us[-1])
    return undisturbed_us if len(undisturbed_us) >= _LEAST_RUNS else times_us


def _enough(times_us: list[float], enough_us: float) -> bool:
    return len(times_us) >= _MOST_RUNS or (len(times_us) >= _LEAST_RUNS and sum(times_us) >= enough_us)


def _taken_cores() -> int:
    """How often the system has taken a core from a thread of this process that wanted to go on."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _no_wait() -> None:
    """CPU kernels are done when they return."""


def _unplanned_bytes(log: AllocationLog, workspace: Workspace) -> int:
    """The most that a run held beside its results and its planned workspace."""
    planned = {index for index, _, _ in workspace.places}
    changes = [(a.born, a.nbytes) for a in log.allocations if a.freed_inside and a.index not in planned]
    changes += [(a.freed, -a.nbytes) for a in log.allocations if a.freed_inside and a.index not in planned]
    live = peak = 0
    for _, change in sorted(changes):
        live += change
        peak = max(peak, live)
    return peak


def _observed(run: Callable[[], Any], device: torch.device) -> tuple[Any, AllocationLog]:
    """A run's result and peak where the native allocator is not there."""
    if device.type != "cuda":
        return _profiled(run)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - held
    kept = torch.cuda.memory_allocated(device) - held
    return result, AllocationLog((), peak, max(peak - kept, 0))


def _profiled(run: Callable[[], Any]) -> tuple[Any, AllocationLog]:
    """By torch's profiler: slower than the native allocator's record, and sees all threads."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = run()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return result, AllocationLog((), peak, max(peak - live, 0))
