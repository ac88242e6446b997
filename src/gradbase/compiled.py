"""`gradbase.compile` and `gradbase.explain`: from the user's objects to a planned step."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from torch import nn, optim

from gradbase.buffer import Frames, PageFile, load_frames
from gradbase.capture import Batch, Program, capture_step, contents_of, eager_peak_bytes, numbers_of, take_apart
from gradbase.catalog import Catalog, OperatorStatistics, medium_of
from gradbase.common.errors import InfeasibleError, UsageError
from gradbase.common.malloc import freed_memory_returned, release_freed_memory
from gradbase.common.units import MemoryRequest, parse_memory
from gradbase.cost import get_profile, host_profile, tier_from_profile
from gradbase.executor import (
    Engine,
    Place,
    Planned,
    Progress,
    analyze,
    apply_known,
    corrections,
    costs_of,
    eager_extras,
    link_of,
    lookup,
    process_bytes,
    random_state_kept,
    tier_of,
    traits_of,
    update_workspace_bytes,
)
from gradbase.explain import Measurements, render_html, render_json, render_perfetto, render_text
from gradbase.ir.costs import Costs, Tier
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import PhysicalPlan
from gradbase.ir.verify import verify_physical
from gradbase.planner import RULES, CurvePoint
from gradbase.planner import plan as search_plan

Loss = Callable[[nn.Module, Any], torch.Tensor]


ALL_RULES = tuple(rule.name for rule in RULES)


# More of them than a model has modes: something changes at every step.
_PLANS_OF_ONE_SHAPE = 6

_log = logging.getLogger("gradbase")


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """What a step is compiled with; see `compile`."""

    memory: MemoryRequest | None
    clip_grad_norm: float | None = None
    accumulate: int = 1
    spill: Path | None = None
    rules: tuple[str, ...] | None = None
    planning_effort_s: float = 8.0
    progress: Progress = _silent
    gradients_only: bool = False


@dataclass(frozen=True)
class Explanation:
    """A planned step: what would run, and what it would cost. `hypothetical`: the device is not this machine."""

    logical: LogicalPlan
    physical: PhysicalPlan
    costs: Costs
    eager_peak_bytes: int
    budget_bytes: int | None
    device: str
    hypothetical: bool

    def render(
        self,
        format: str = "text",
        *,
        measurements: Measurements | None = None,
        curve: Iterable[CurvePoint] = (),
        source: bool = False,
        depth: int = 3,
    ) -> str:
        """As "text", "json", "html" or "perfetto"."""
        profile = self.device if self.hypothetical else None
        given = {"measurements": measurements, "curve": tuple(curve), "device_profile": profile}
        plans = (self.logical, self.physical, self.costs)
        if format == "text":
            return render_text(*plans, **given, source=source, depth=depth)
        if format == "json":
            return json.dumps(render_json(*plans, **given))
        if format == "html":
            return render_html(*plans, **given)
        if format == "perfetto":
            return json.dumps(render_perfetto(*plans, measurements=measurements))
        raise UsageError(f"format {format!r} is not known", "expected text, json, html or perfetto")


class Step:
    """A compiled training step: call it with a batch, as often as there are batches.

    Parameters, buffers and optimizer state are the user's own and are updated in place. A batch of another
    shape gets a plan of its own, once. Close it, or use it as a context manager, to give memory back.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, optimizer: optim.Optimizer, catalog: Catalog, options: Options
    ) -> None:
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._options = options
        self._device = _device_of(model)
        self._frames = load_frames() if self._device.type == "cpu" else None
        self._planner = _StepPlanner(model, loss, optimizer, catalog, options, self._device, self._frames)
        self._plans: dict[Any, tuple[Planned, Explanation]] = {}
        self._calls = 0
        self._summed: set[str] = set()
        self._identities: tuple[int, ...] = ()
        self._engine = Engine(
            model,
            optimizer,
            frames=self._frames,
            page_directory=self._planner.page_directory,
            max_norm=options.clip_grad_norm,
            device=self._device,
        )
        self._current: tuple[Planned, Explanation] | None = None
        self.planning_s = 0.0
        self.last_step_us = 0.0
        self._step_times_us: list[float] = []

    def __call__(self, batch: Any) -> torch.Tensor:
        """Run one step (with `accumulate`, one micro-batch of it) and return the loss, detached.

        Raises StepError when the step fails, InfeasibleError when a batch of a new shape fits no plan.
        """
        last = (self._calls + 1) % self._options.accumulate == 0
        loss = self._timed(batch, update=last)
        self._calls += 1
        self._engine.accumulation.fresh = last
        # A scheduler warns unless it sees that its optimizer has stepped.
        self._optimizer._opt_called = True  # type: ignore[attr-defined]
        return loss

    def _check_sum(self, planned: Planned) -> None:
        """All batches of a sum must give gradients to the same parameters: an update is planned for these."""
        accumulations = planned.program.tail.accumulations
        names = {name for update in accumulations.values() for name in update.names}
        if self._engine.accumulation.fresh:
            self._summed = names
        elif names != self._summed:
            raise UsageError(
                f"{min(names ^ self._summed)} gets a gradient from some of the batches that are summed, not from all",
                "group batches so that all of a sum take the same way through the model",
            )

    def _timed(self, batch: Any, *, update: bool) -> torch.Tensor:
        given = take_apart(batch)
        planned, explanation = self._prepared(batch, given, update)
        if self._options.accumulate > 1:
            self._check_sum(planned)
        self._current = planned, explanation
        start = time.perf_counter()
        loss = self._engine.run(planned, given.tensors)
        for assign in planned.program.assignments:
            assign()
        self.last_step_us = (time.perf_counter() - start) * 1e6
        self._step_times_us.append(self.last_step_us)
        return loss

    def prepare(self, batch: Any, *, update: bool = True) -> tuple[Planned, Explanation]:
        """The plan for a batch of this shape: from the plan cache, or made now."""
        return self._prepared(batch, take_apart(batch), update)

    def _prepared(self, batch: Any, given: Batch, update: bool) -> tuple[Planned, Explanation]:
        if torch.is_autocast_enabled(self._device.type):
            raise UsageError("the step is called or compiled under autocast", "open torch.autocast inside of the loss")
        key = (self._key(given), update)
        if key not in self._plans:
            start = time.perf_counter()
            with random_state_kept(self._device):
                self._plans[key] = self._planner.plan(batch, update=update)
            gc.collect()
            release_freed_memory()
            self.planning_s += time.perf_counter() - start
            self._watch_plans(given, key)
        return self._plans[key]

    def _key(self, given: Batch) -> Any:
        """All that a plan is made for."""
        contents = contents_of(self._model)
        identities = tuple(map(id, (*contents.parameters, *contents.buffers)))
        if identities != self._identities:
            self._engine.follow(dict(self._model.named_parameters()), dict(self._model.named_buffers()))
            self._identities = identities
        shapes = tuple(map(_layout, given.tensors))
        wanted = tuple([(p.requires_grad, p.dtype) for p in contents.parameters])
        held = tuple(map(_layout, contents.buffers))
        owned = tuple([(bool(g.get("momentum")), *map(id, g["params"])) for g in self._optimizer.param_groups])
        return shapes, given.rest, wanted, held, owned, tuple(contents.numbers), numbers_of(self._loss)

    def _watch_plans(self, given: Batch, key: Any) -> None:
        """Say so where numbers that change from step to step cost a plan each."""
        (shapes, *rest), update = key
        alike = [others for (its, *others), its_update in self._plans if (its, its_update) == (shapes, update)]
        if len(alike) == _PLANS_OF_ONE_SHAPE:
            _log.warning(
                "the step was planned %d times for batches of one shape, because numbers or texts changed that it may "
                "read: %s; leave them out of the batch or the model, or make tensors (buffers) of them",
                len(alike),
                _difference(tuple(alike[-2]), tuple(rest)),
            )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a compiled step cannot be pickled or copied: keep the state dicts, and compile it again there")

    # -- what the plan says

    @property
    def explanation(self) -> Explanation:
        """The present plan with everything it was made from."""
        assert self._current is not None
        return self._current[1]

    @property
    def plan(self) -> PhysicalPlan:
        return self.explanation.physical

    @property
    def logical(self) -> LogicalPlan:
        return self.explanation.logical

    @property
    def costs(self) -> Costs:
        return self.explanation.costs

    @property
    def budget_bytes(self) -> int | None:
        return self.explanation.budget_bytes

    @property
    def eager_peak_bytes(self) -> int:
        """What eager PyTorch needs for the same step, predicted."""
        return self.explanation.eager_peak_bytes

    @property
    def measured_peak_bytes(self) -> int | None:
        """The most memory that a step has held so far; None before the first one."""
        return self._engine.meter.peak_bytes if self._engine.meter else None

    def measurements(self) -> Measurements:
        """Measured times per instruction (medians over the last steps), peak and step times."""
        assert self._current is not None
        runs = self._current[0].times_us
        times = tuple(median(values) for values in zip(*runs, strict=True)) if runs else ()
        return Measurements(times, self.measured_peak_bytes, tuple(self._step_times_us[-16:]))

    def correct_statistics(self) -> int:
        """Put right in the catalogue what the steps so far show to be more than 1.5 times off; returns how many.

        The present plan stays; the next one is made with them. Nothing is corrected before the third step.
        """
        assert self._current is not None
        return self._planner.correct(self._current[0])

    def explain(self, analyze: bool = False, format: str = "text", source: bool = False) -> str:
        """The plan, as text, json, html or perfetto; with `analyze`, measurements of the steps so far beside it."""
        if analyze and not self._step_times_us:
            raise UsageError("nothing is measured before the first step", "call the step, then explain(analyze=True)")
        return self.explanation.render(format, measurements=self.measurements() if analyze else None, source=source)

    def close(self) -> None:
        """Give arena and page file back."""
        self._engine.close()

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GradientStep(Step):
    """A compiled forward and backward pass: leaves the gradients in `.grad` and updates nothing.

    For whoever applies the update elsewhere. A `.grad` that is there when the step is compiled is the buffer that every
    call writes (a view into shared memory, say), so it must stay there; where there is none, one is made.
    """

    def __call__(
        self, batch: Any, *, add: bool = False, on_ready: Callable[[Sequence[str]], None] | None = None
    ) -> torch.Tensor:
        """Compute the batch's gradients and return the loss, detached.

        Gradients overwrite what `.grad` holds, with `add` they are added to it. `on_ready(names)` is called while the
        backward pass runs, each time that the gradients of some parameters are complete. Raises as `Step` does.
        """
        accumulation = self._engine.accumulation
        accumulation.fresh, accumulation.on_ready = not add, on_ready
        return self._timed(batch, update=False)


class _StepPlanner:
    """Captures, measures and plans the step of one model for any batch."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: optim.Optimizer,
        catalog: Catalog,
        options: Options,
        device: torch.device,
        frames: Frames | None,
    ) -> None:
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._catalog = catalog
        self._options = options
        self._device = device
        self._frames = frames
        self._place = Place.here(device, frames)
        self.page_directory = options.spill or default_page_directory()
        self._tier = self._find_tier()
        self._budget_bytes: int | None = None
        self._warm: set[str] = set()

    def _find_tier(self) -> Tier | None:
        """No paging onto a RAM disk: it would take from the same memory."""
        if self._device.type == "cuda":
            return link_of(self._device, self._catalog, self._place, self._options.progress)
        with PageFile(self.page_directory, 4096) as probe:
            if probe.medium == "memory":
                return None
        return tier_of(self.page_directory, self._catalog, self._options.progress)

    def _may_spill(self) -> bool:
        """Whether weights and state may get homes in the page file.

        Pinned host memory has no mapping that could be one. Whoever asks for gradients alone reads the weights where
        they are, and tensors that share a storage would have to move together.
        """
        if self._device.type == "cuda" or self._options.gradients_only:
            return False
        return _parameters_stand_alone(self._model)

    def plan(self, batch: Any, *, update: bool) -> tuple[Planned, Explanation]:
        options = self._options
        options.progress("capturing the step", 0, 1)
        captured = capture_step(self._model, self._loss, self._optimizer, batch)
        accumulate = options.accumulate > 1 or options.gradients_only
        clip = options.clip_grad_norm is not None
        program = captured.program(clip=clip, accumulate=accumulate, update=update)
        options.progress("capturing the step", 1, 1)
        parameters = dict(self._model.named_parameters())
        with freed_memory_returned():  # so that what a kernel takes past torch's allocator can be seen
            analyzed = analyze(
                program,
                self._optimizer,
                parameters,
                self._catalog,
                self._place,
                self._frames,
                self._warm,
                options.progress,
            )
        eager = _eager_bytes(self._model, self._loss, batch, program, analyzed.statistics)
        if self._budget_bytes is None and options.memory is not None:
            self._budget_bytes = options.memory.resolve(eager)
        profile = host_profile(self._catalog)
        costs = costs_of(
            program, analyzed.statistics, profile, self._tier, process_bytes(eager, len(program.plan.operators))
        )
        if not self._may_spill():
            rules = ALL_RULES if options.rules is None else options.rules
            options = replace(options, rules=tuple(r for r in rules if r != "spill"))
        physical = _search(program.plan, costs, self._budget_bytes, options)
        planned = Planned(program, physical, traits_of(program, analyzed.statistics))
        device = self._place.device
        return planned, Explanation(
            program.plan, physical, costs, eager, self._budget_bytes, device, hypothetical=False
        )


    def correct(self, planned: Planned) -> int:
        """Correct the catalogue by the steps of a plan."""
        place = self._place
        found = corrections(planned, lookup(planned.program, self._catalog, place))
        if found:
            self._catalog.correct(
                found, device=place.device, torch_version=place.torch_version, threads=place.threads
            )
        return len(found)


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _difference(old: Any, new: Any) -> str:
    """The first value that differs between two nested tuples."""
    if not (isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new)):
        return f"{new} was {old}"[:200]
    return next((_difference(a, b) for a, b in zip(old, new, strict=True) if a != b), "")


def _parameters_stand_alone(model: nn.Module) -> bool:
    """Whether each parameter fills a storage that no other tensor of the model lies in."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.numel()]
    places = Counter(t.untyped_storage().data_ptr() for t in tensors)
    return all(
        places[t.untyped_storage().data_ptr()] == 1 and t.untyped_storage().nbytes() == t.numel() * t.element_size()
        for t in tensors
        if isinstance(t, nn.Parameter)
    )


def _search(logical: LogicalPlan, costs: Costs, budget_bytes: int | None, options: Options) -> PhysicalPlan:
    options.progress("searching a plan", 0, 1)
    physical = search_plan(logical, costs, budget_bytes, rules=options.rules, effort_s=options.planning_effort_s)
    verify_physical(logical, physical)
    options.progress("searching a plan", 1, 1)
    return physical


def _eager_bytes(
    model: nn.Module, loss: Loss, batch: Any, program: Program, statistics: Mapping[str, OperatorStatistics]
) -> int:
    """Eager's peak: what always stays, and the higher of backward pass and update."""
    storages = program.plan.storages
    staying = sum(s.nbytes for s in storages if s.external and s.kind != "accumulator")
    gradients = sum(s.nbytes for s in storages if s.kind == "gradient")
    updates = [program.plan.operators[o].signature for o in program.tail.updates]
    workspace = max((update_workspace_bytes(statistics[s]) for s in updates if s in statistics), default=0)
    step = eager_peak_bytes(model, loss, batch, eager_extras(statistics))
    return staying + max(step, gradients + workspace)


def _device_of(model: nn.Module) -> torch.device:
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) != 1:
        raise UsageError(
            f"the model's tensors are on {len(devices)} devices: {', '.join(sorted(map(str, devices))) or 'none'}",
            "a plan is for one device: move the model there first",
        )
    return devices.pop()


def default_page_directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "gradbase" / "pages"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _options(
    memory: str | int | float | None,
    clip_grad_norm: float | None,
    accumulate: int,
    spill: str | os.PathLike[str] | None,
    rules: Collection[str] | None,
    planning_effort_s: float,
    on_progress: Progress | None,
) -> Options:
    if not isinstance(accumulate, int) or accumulate < 1:
        raise UsageError(f"accumulate is {accumulate}, expected 1 or more", "1 updates at every call")
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise UsageError(f"clip_grad_norm is {clip_grad_norm}, expected a norm above zero", "leave it out not to clip")
    return Options(
        parse_memory(memory),
        clip_grad_norm,
        accumulate,
        Path(spill) if spill is not None else None,
        None if rules is None else tuple(rules),
        planning_effort_s,
        on_progress or _silent,
    )


def _catalog_of(catalog: Catalog | str | os.PathLike[str] | None) -> Catalog:
    return catalog if isinstance(catalog, Catalog) else Catalog(None if catalog is None else Path(catalog))


def compile(
    model: nn.Module,
    loss: Loss,
    optimizer: optim.Optimizer,
    batch: Any,
    memory: str | int | float | None = None,
    *,
    clip_grad_norm: float | None = None,
    accumulate: int = 1,
    spill: str | os.PathLike[str] | None = None,
    catalog: Catalog | str | os.PathLike[str] | None = None,
    rules: Collection[str] | None = None,
    planning_effort_s: float = 8.0,
    on_progress: Progress | None = None,
) -> Step:
    """Plan the training step `loss(model, batch)`, its backward pass and `optimizer`'s update, within `memory`.

    `batch` is any pytree of tensors (dataclasses and objects with attributes too) and stands for all batches of its
    shape; no step is taken with it. Python runs when a plan is made, kernels run at every step: see the README of
    `gradbase.capture` for what follows for numbers that a model reads and for what it leaves behind. `memory` is
    bytes ("1.5GB", 2_000_000_000), a share of what eager needs for the same step ("40%"), or None for no limit; it
    covers parameters, gradients, optimizer state, activations and workspace. `clip_grad_norm` clips gradients by
    global norm before the update; `accumulate` updates at every n-th call, with summed gradients. `spill` is the
    directory of the page file (default: the user's cache directory), `catalog` the file of the statistics.
    `rules` names the planner's rules that are on (default: all). `planning_effort_s` cuts a long search short, by
    work and not by the clock: what an ordinary core does in so many seconds for up to 1,000 operators. A plan is found
    all the same, or refused, and the same statistics give the same plan. `on_progress(stage, done, total)` is called
    while it works. The first time on a machine, operators are measured: that takes about ten steps' time.

    Raises CaptureError (the step depends on data), InfeasibleError (nothing fits: it carries the least bytes),
    UsageError.
    """
    _check_kinds(model, loss, optimizer)
    options = _options(memory, clip_grad_norm, accumulate, spill, rules, planning_effort_s, on_progress)
    _require_values(model)
    with random_state_kept(_device_of(model)):  # the first time on a machine, its disk is measured
        step = Step(model, loss, optimizer, _catalog_of(catalog), options)
    step._current = _prepared_for_all_calls(step, batch, accumulate)
    return step


def _prepared_for_all_calls(step: Step, batch: Any, accumulate: int) -> tuple[Planned, Explanation]:
    """The plan of the first call; those that only add gradients and the one that updates must all fit."""
    plans, refusals = [], []
    for update in (False, True) if accumulate > 1 else (True,):
        try:
            plans.append(step.prepare(batch, update=update))
        except InfeasibleError as error:
            refusals.append(error)
    if refusals:
        raise max(refusals, key=lambda refusal: refusal.least_bytes)
    return plans[0]


def _check_kinds(model: Any, loss: Any, optimizer: Any) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}", "expected a torch.nn.Module, made")
    if not callable(loss):
        raise UsageError(f"loss is a {type(loss).__name__}", "expected a function of the model and a batch")
    if not isinstance(optimizer, optim.Optimizer):
        raise UsageError(f"optimizer is a {type(optimizer).__name__}", "expected a torch.optim.Optimizer")


def _require_values(model: nn.Module) -> None:
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UsageError(
            "the model is on the meta device: it has no values to train", "use gradbase.compiled.explain for it"
        )


def compile_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    memory: str | int | float | None = None,
    *,
    spill: str | os.PathLike[str] | None = None,
    catalog: Catalog | str | os.PathLike[str] | None = None,
    rules: Collection[str] | None = None,
    planning_effort_s: float = 8.0,
    on_progress: Progress | None = None,
) -> GradientStep:
    """Plan the gradients of `loss(model, batch)` within `memory`; the update is the caller's, or a parameter store's.

    Arguments and errors as in `compile`. `memory` covers parameters, the `.grad` buffers, activations and workspace.
    """
    options = _options(memory, None, 1, spill, rules, planning_effort_s, on_progress)
    _require_values(model)
    # Stands for whoever updates: it owns every parameter that may get a gradient, keeps no state and never steps.
    owner = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    _check_kinds(model, loss, owner)
    with random_state_kept(_device_of(model)):
        step = GradientStep(model, loss, owner, _catalog_of(catalog), replace(options, gradients_only=True))
    step._current = step.prepare(batch, update=False)
    return step


def explain(
    model: nn.Module,
    loss: Loss,
    optimizer: optim.Optimizer,
    batch: Any,
    memory: str | int | float | None = None,
    *,
    device: str | None = None,
    clip_grad_norm: float | None = None,
    accumulate: int = 1,
    catalog: Catalog | str | os.PathLike[str] | None = None,
    rules: Collection[str] | None = None,
    planning_effort_s: float = 8.0,
    on_progress: Progress | None = None,
) -> Explanation:
    """Plan a step without running anything of it and without allocating the model, which may be on the meta device.

    `device` names a profile of hardware that need not be here (`gradbase.cost.PROFILES`); None is this machine, with
    the catalogue's statistics where it has them and estimates elsewhere. Other arguments as in `compile`.
    """
    _check_kinds(model, loss, optimizer)
    options = _options(memory, clip_grad_norm, accumulate, None, rules, planning_effort_s, on_progress)
    with random_state_kept(torch.device("cpu")):
        return _explained(model, loss, optimizer, batch, device, _catalog_of(catalog), options)


def _explained(
    model: nn.Module,
    loss: Loss,
    optimizer: optim.Optimizer,
    batch: Any,
    device: str | None,
    store: Catalog,
    options: Options,
) -> Explanation:
    captured = capture_step(model, loss, optimizer, batch)
    program = captured.program(clip=options.clip_grad_norm is not None, accumulate=options.accumulate > 1)
    profile = host_profile(store) if device is None else get_profile(device)
    statistics: Mapping[str, OperatorStatistics] = {}
    if device is None:
        statistics = lookup(program, store, Place.here(torch.device("cpu"), load_frames()))
        apply_known(program, statistics)
    eager = _eager_bytes(model, loss, batch, program, statistics)
    known = store.lookup_tier(medium_of(default_page_directory())) if device is None else None
    tier = known.tier() if known else tier_from_profile(profile)
    costs = costs_of(program, statistics, profile, tier, process_bytes(eager, len(program.plan.operators)))
    budget = options.memory.resolve(eager) if options.memory else None
    physical = _search(program.plan, costs, budget, options)
    return Explanation(program.plan, physical, costs, eager, budget, profile.name, hypothetical=device is not None)


__all__ = ["Explanation", "GradientStep", "Options", "Step", "compile", "compile_gradients", "explain"]
