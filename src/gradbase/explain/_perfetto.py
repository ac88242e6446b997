"""A plan as a Chrome trace, for ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradbase.explain._measured import Measurements
from gradbase.explain._timeline import Timeline, layers, timeline
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import Await, Compute, Instruction, PageOut, PhysicalPlan

_PROCESS = 1
_COMPUTE, _OUT, _IN, _MEASURED = range(1, 5)
_TRACKS = {_COMPUTE: "compute", _OUT: "page-out", _IN: "page-in", _MEASURED: "compute, measured"}


def render_perfetto(
    logical: LogicalPlan, physical: PhysicalPlan, costs: Costs, *, measurements: Measurements | None = None
) -> dict[str, Any]:
    """The trace as a dict to be dumped as JSON: the Trace Event Format, times in µs.

    Tracks: compute (operators, waits, slowing by transfers), page-out, page-in, a counter of bytes by layer, and
    with `measurements` what the computing thread really did.
    """
    times = timeline(logical, physical, costs)
    events = [*_names(measurements is not None), *_instructions(logical, physical, times)]
    events += _counter(logical, physical, costs, times)
    if measurements is not None:
        events += _measured(logical, physical, measurements)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(measured: bool) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": _PROCESS, "name": "process_name", "args": {"name": "gradbase: one step"}}
    for track, name in _TRACKS.items():
        if track != _MEASURED or measured:
            yield {"ph": "M", "pid": _PROCESS, "tid": track, "name": "thread_name", "args": {"name": name}}


def _instructions(logical: LogicalPlan, physical: PhysicalPlan, times: Timeline) -> Iterator[dict[str, Any]]:
    for index, step in enumerate(physical.instructions):
        issued, left = times.issued_us[index], times.left_us[index]
        name, args = _about(logical, physical, step)
        args["instruction"] = index
        if isinstance(step, (Compute, Await)):
            if left > issued or isinstance(step, Compute):
                yield _event(_COMPUTE, name, issued, left, args)
            continue
        track = _OUT if isinstance(step, PageOut) else _IN
        yield _event(track, name, times.start_us[index], times.end_us[index], args)
        if left > issued:
            yield _event(_COMPUTE, "slowed by a transfer", issued, left, args)


def _about(logical: LogicalPlan, physical: PhysicalPlan, step: Instruction) -> tuple[str, dict[str, Any]]:
    if isinstance(step, Compute):
        operator = logical.operators[step.operator]
        name = f"{operator.name} again" if step.run else operator.name
        return name, {"target": operator.target, "module": operator.module, "phase": operator.phase}
    storage = logical.storages[physical.lives[step.life].storage]
    verb = f"wait for page-{step.direction} of " if isinstance(step, Await) else ""
    return f"{verb}{storage.name}", {"storage": storage.id, "nbytes": storage.nbytes, "kind": storage.kind}


def _event(track: int, name: str, start_us: float, end_us: float, args: dict[str, Any]) -> dict[str, Any]:
    event = {"ph": "X", "pid": _PROCESS, "tid": track, "name": name, "ts": start_us, "dur": end_us - start_us}
    return event | {"args": args}


def _counter(
    logical: LogicalPlan, physical: PhysicalPlan, costs: Costs, times: Timeline
) -> Iterator[dict[str, Any]]:
    stacked = layers(logical, physical, costs)
    for index, issued in enumerate(times.issued_us):
        row = {name: values[index] for name, values in stacked.items()}
        yield {"ph": "C", "pid": _PROCESS, "name": "bytes", "ts": issued, "args": row}


def _measured(
    logical: LogicalPlan, physical: PhysicalPlan, measurements: Measurements
) -> Iterator[dict[str, Any]]:
    now = 0.0
    measured = measurements.times_of(len(physical.instructions))
    for index, (step, time_us) in enumerate(zip(physical.instructions, measured, strict=True)):
        if time_us:
            name, args = _about(logical, physical, step)
            yield _event(_MEASURED, name, now, now + time_us, args | {"instruction": index})
            now += time_us
