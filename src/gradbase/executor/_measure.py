"""ANALYZE: every operator of a plan is run and timed on this device the first time it is seen.

An operator is measured as it will be executed: results into an arena whose pages are already there, in the
way that its lowering says. Beside the time, a run tells what tracing cannot know: memory that a kernel takes
beside its results, results that are larger or laid out otherwise than the fake kernel says (an LSTM's
workspace), and which of its allocations are its results.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import optim
from torch.profiler import ProfilerActivity, profile

from gradbase.buffer import AllocationLog, Arena, DeviceArena, Frames, FrameSource
from gradbase.capture import Call, PartialStep, Program, Ref, Update
from gradbase.catalog import OperatorStatistics
from gradbase.executor._lowering import Lowering, Scope, arguments_of, choose, emit, served_lines
from gradbase.executor._peak import reset_resident_peak, resident_bytes
from gradbase.executor._traits import Trait, Workspace, apply_trait, layout_of, pack_workspace, served_indices
from gradbase.ir.logical import Operator, Tensor

_ALIGNMENT_BYTES = 4096
_LEAST_RUNS, _MOST_RUNS = 3, 15
_ENOUGH_US = 40_000.0
_POOL_ELEMENTS = 1 << 16
# The kernel counts pages per processor and adds them up now and then: less than this is noise.
_SEEN_IN_RESIDENT_SET_BYTES = 1 << 20


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Measuring leaves the generators as it found them."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


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
        self._bench = _Bench(_widest_bytes(program), frames, device)

    def measure(self, operator: Operator) -> OperatorStatistics:
        """Run and time one operator of the program. Allocates its arguments and results, no more."""
        call = self._program.calls.get(operator.id)
        with random_state_kept(self._device):
            if call is None:
                with torch.no_grad():
                    return self._measure_macro(operator)
            # Gradients stay enabled though nothing requires one: recurrent kernels look at the mode to decide
            # whether to leave what the backward pass needs.
            with torch.enable_grad():
                return self._measure_call(operator, call)

    def warm_up(self, operator: Operator, trait: Trait) -> None:
        """Run a kernel once, so that what its library builds and keeps is there before memory is promised."""
        call = self._program.calls.get(operator.id)
        if call is None:
            return
        with random_state_kept(self._device), torch.enable_grad():
            self._bench.lay_out(self._program, call, trait.workspace_bytes)
            self._compiled(call, choose(call, trait))()

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
                workspace = pack_workspace(log.allocations) if self._frames else Workspace()
                return Trait(workspace=workspace), self._scratch_bytes(log, workspace)
        return self._discover_functional(call)

    def _discover_functional(self, call: Call) -> tuple[Trait, int]:
        windows = self._bench.windows(self._program, Scope())
        args = _materialized(call.args, windows)
        kwargs = {k: _materialized(v, windows) for k, v in call.kwargs.items()}
        results, log = self._recorded(lambda: call.target(*args, **kwargs))
        several = isinstance(results, (tuple, list))
        tensors = [r if isinstance(r, torch.Tensor) else None for r in (results if several else [results])]
        layouts = tuple(None if t is None else layout_of(t) for t in tensors)
        served = served_indices(self._program, call.results, tensors, log) if self._frames else None
        workspace = pack_workspace(log.allocations) if self._frames else Workspace()
        copied_bytes = 0 if served is not None else sum(_nbytes(t) for t in tensors)
        return Trait(served, layouts, workspace, native=False), self._scratch_bytes(log, workspace) + copied_bytes

    def _scratch_bytes(self, log: AllocationLog, workspace: Workspace) -> int:
        return _unplanned_bytes(log, workspace) if self._frames else log.peak_extra_bytes

    def _unseen_bytes(self, run: Callable[[], Any]) -> int:
        """What a kernel takes past torch's allocator: libraries call malloc themselves. From the resident set."""
        if self._device.type == "cuda":
            return 0
        run()
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
        _, creating = self._frames.record(run)
        run()
        _, steady = self._frames.record(run)
        trait = Trait(
            workspace=pack_workspace(steady.allocations),
            first=pack_workspace(creating.allocations),
            created=_created(run, creating),
        )
        scratch_bytes = max(_unplanned_bytes(steady, trait.workspace), _unplanned_bytes(creating, trait.first))
        served = self._served(run, trait, self._bench.spare(trait.workspace_bytes))
        return self._statistics(operator, _timed(served, self._device), scratch_bytes, trait, "macro")

    def _served(self, run: Callable[[], None], trait: Trait, address: int) -> Callable[[], None]:
        if not trait.workspace.places:
            return run
        scope = Scope()
        planned = [(index, address + offset, nbytes) for index, nbytes, offset in trait.workspace.places]
        lines = served_lines([f"{scope.bind('run', run)}()"], planned, scope, self._frames, "update")
        exec("def served():\n" + "\n".join(f"    {line}" for line in lines), scope.names)
        return scope.names["served"]  # type: ignore[no-any-return]

    def _update(self, update: Update) -> PartialStep:
        """The optimizer's own step on stand-ins of the same shapes, so that no parameter changes."""
        stand_ins = [self._parameters[name] for name in update.names]
        self._bench.reserve(2 * sum(p.numel() * p.element_size() + _ALIGNMENT_BYTES for p in stand_ins))
        trial, copies = _trial(self._optimizer, stand_ins, self._bench)
        return PartialStep(trial, copies)

    def _touch(self, operator: Operator) -> Callable[[], None]:
        """Clip and accumulate: as much memory traffic as they make (two reads and a write)."""
        nbytes = sum(self._program.plan.storages[s].nbytes for s in operator.mutates)
        self._bench.reserve(2 * nbytes + 2 * _ALIGNMENT_BYTES)
        left = self._bench.floats(0, nbytes // 4)
        right = self._bench.floats(nbytes + _ALIGNMENT_BYTES - nbytes % _ALIGNMENT_BYTES, nbytes // 4)

        def run() -> None:
            left.add_(right)

        return run


def _trial(
    optimizer: optim.Optimizer, parameters: Sequence[torch.Tensor], bench: _Bench
) -> tuple[Any, list[torch.Tensor]]:
    by_id: dict[int, torch.Tensor] = {}
    position = 0
    for parameter in parameters:
        nbytes = parameter.numel() * parameter.element_size()
        pair = []
        for _ in range(2):
            pair.append(bench.window(position, parameter))
            position += -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        by_id[id(parameter)] = torch.nn.Parameter(pair[0])
        by_id[id(parameter)].grad = pair[1]
    trial = copy.copy(optimizer)
    trial.state = type(optimizer.state)(dict)
    trial.param_groups = [
        {**g, "params": [by_id[id(p)] for p in g["params"] if id(p) in by_id]} for g in optimizer.param_groups
    ]
    return trial, list(by_id.values())


class _Bench:
    """One arena for all measurements: its pages are touched once, as in the step."""

    def __init__(self, nbytes: int, frames: Frames | None, device: torch.device) -> None:
        self._frames = frames
        self._device = device
        with random_state_kept(device):
            self._pool = torch.rand(_POOL_ELEMENTS, device=device)
        self._arena: FrameSource | None = None
        self._spare: FrameSource | None = None
        self._offsets: dict[int, int] = {}
        self._workspace = 0
        self.reserve(nbytes)

    def reserve(self, nbytes: int) -> None:
        if self._arena is None or self._arena.nbytes < nbytes:
            self._arena = self._new_arena(nbytes)
            self._fill(0, nbytes)

    def _new_arena(self, nbytes: int) -> FrameSource:
        if self._device.type == "cuda":
            return DeviceArena(nbytes, self._device)
        arena = Arena(nbytes)
        if self._frames is not None:
            self._frames.adopt(arena)
        return arena

    def _fill(self, offset: int, nbytes: int) -> None:
        """Plain numbers between 0 and 1: no NaN, no denormals, valid as probabilities and variances."""
        whole = self.floats(offset, nbytes // 4)
        for start in range(0, whole.numel(), _POOL_ELEMENTS):
            part = whole[start : start + _POOL_ELEMENTS]
            part.copy_(self._pool[: part.numel()])

    def floats(self, offset: int, count: int) -> torch.Tensor:
        assert self._arena is not None
        return self._arena.tensor(offset, "float32", (count,), (1,))

    def window(self, offset: int, like: torch.Tensor) -> torch.Tensor:
        assert self._arena is not None
        return self._arena.tensor(offset, like.dtype, like.shape, like.stride())

    def lay_out(self, program: Program, call: Call, workspace_bytes: int = 0) -> None:
        """A place for every storage of a call; arguments filled, integers with zeros (a valid index)."""
        arguments = [ref.value for ref in arguments_of(call)]
        self._offsets = {}
        position = 0
        for value in (*arguments, *(v for v in call.results if v is not None)):
            storage = program.values[value].storage
            if storage not in self._offsets:
                self._offsets[storage] = position
                nbytes = program.plan.storages[storage].nbytes
                position += -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES + _ALIGNMENT_BYTES
        self._workspace = position
        self.reserve(position + workspace_bytes)
        for value in arguments:
            self._prepare(program.values[value], program.plan.storages[program.values[value].storage].nbytes)

    def _prepare(self, tensor: Tensor, nbytes: int) -> None:
        assert self._arena is not None
        offset = self._offsets[tensor.storage]
        dtype: torch.dtype = getattr(torch, tensor.dtype)
        if not dtype.is_floating_point:
            self._arena.tensor(offset, "uint8", (nbytes,), (1,)).zero_()
        elif dtype == torch.float32:
            self._fill(offset, nbytes)
        else:
            count = nbytes // dtype.itemsize
            self._arena.tensor(offset, dtype, (count,), (1,)).fill_(0.5)

    def windows(self, program: Program, scope: Scope) -> _BenchWindows:
        assert self._arena is not None
        return _BenchWindows(self._arena, self._offsets, self._arena.address + self._workspace, program, scope)

    def spare(self, nbytes: int) -> int:
        """The address of so many bytes that no window of this bench overlaps."""
        self._spare = self._new_arena(nbytes)
        return self._spare.address


class _BenchWindows:
    def __init__(self, arena: Arena, offsets: dict[int, int], workspace: int, program: Program, scope: Scope) -> None:
        self._arena = arena
        self._offsets = offsets
        self._workspace = workspace
        self._program = program
        self._scope = scope

    def tensor(self, value: int) -> torch.Tensor:
        spec = self._program.values[value]
        offset = self._offsets[spec.storage] + spec.offset * getattr(torch, spec.dtype).itemsize
        return self._arena.tensor(offset, spec.dtype, spec.shape, spec.strides)

    def read(self, value: int) -> str:
        return self._scope.bind("t", self.tensor(value))

    write = read

    def frame(self, value: int) -> tuple[int, int]:
        spec = self._program.values[value]
        return self._arena.address + self._offsets[spec.storage], self._program.plan.storages[spec.storage].nbytes

    def workspace(self) -> int:
        return self._workspace


def _created(step: PartialStep, log: AllocationLog) -> tuple[tuple[str, int], ...]:
    """Which allocations of its first run are the state of an update of one parameter, as (key, index)."""
    if len(step.state) != 1:
        return ()
    (state,) = step.state.values()
    found = [(key, log.index_of(t.data_ptr())) for key, t in state.items() if isinstance(t, torch.Tensor)]
    return tuple((key, index) for key, index in found if index is not None)


def _materialized(argument: Any, windows: _BenchWindows) -> Any:
    if isinstance(argument, Ref):
        return windows.tensor(argument.value)
    if isinstance(argument, (tuple, list)):
        return [_materialized(a, windows) for a in argument]
    return argument


def _widest_bytes(program: Program) -> int:
    """What the widest operator needs, so that the measuring arena is allocated once."""
    storages = program.plan.storages
    return max(
        (
            sum(storages[s].nbytes + 2 * _ALIGNMENT_BYTES for s in {*op.reads, *op.writes})
            for op in program.plan.operators
        ),
        default=0,
    )


def _nbytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.untyped_storage().nbytes()


def _timed(run: Callable[[], Any], device: torch.device) -> list[float]:
    """Runs until the times add up to enough, after one run that warms caches."""
    wait = torch.cuda.synchronize if device.type == "cuda" else _no_wait
    run()
    wait()
    times_us: list[float] = []
    while len(times_us) < _LEAST_RUNS or (len(times_us) < _MOST_RUNS and sum(times_us) < _ENOUGH_US):
        start = time.perf_counter()
        run()
        wait()
        times_us.append((time.perf_counter() - start) * 1e6)
    return times_us


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
