"""EXPLAIN for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from gradbase.explain._measured import Measurements
from gradbase.explain._report import CurvePoint, OperatorRow, Report, build_report
from gradbase.explain._tree import Node
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import Await, Compute, PageIn, PhysicalPlan


def render_json(
    logical: LogicalPlan,
    physical: PhysicalPlan,
    costs: Costs,
    *,
    measurements: Measurements | None = None,
    curve: Iterable[CurvePoint] = (),
    device_profile: str | None = None,
) -> dict[str, Any]:
    """The plan explained as a dict of what JSON knows. Bytes in keys that end in _bytes, µs in _us.

    - "device", "device_profile", "notes", "rules", "estimates" (operators by source of their estimate), "planning_s"
    - "memory": budget_bytes (None: no limit), predicted_peak_bytes and its parts resident_bytes, arena_bytes and
      scratch_bytes, before_planning_bytes, page_file_bytes, paged_out_bytes, paged_in_bytes
    - "time": predicted_us, unlimited_us, lower_bound_us, gap (a share; None without a bound), and the simulated
      parts first_us, recompute_us, waiting_us, slowed_us
    - "modules": the tree, each {"name", "operators", "figures", "sources", "children"}, not folded
    - "operators": most expensive first, each {"operator", "name", "module", "target", "phase", "source_line", "runs",
      "time_us", "measured_us", "estimate"}
    - "decisions": storages recomputed or paged, largest first, each {"name", "module", "nbytes", "action", "after",
      "before", "cost_us", "why"}
    - "peak": {"instruction", "operator", "total_bytes", "holders"}
    - "timeline": one entry per instruction, {"kind", "name", "start_us", "end_us", "arena_bytes"}
    - "curve": points as the planner gives them
    - "measured": None, or the measurements and "q_error" {"count", "median", "p90"}

    A figure that is infinite or undefined is None.
    """
    report = build_report(logical, physical, costs, measurements, curve, device_profile)
    plain = {
        "device": logical.device,
        "device_profile": device_profile,
        "notes": list(logical.notes),
        "rules": list(physical.rules),
        "estimates": report.estimates,
        "planning_s": physical.planning_s,
        "memory": _memory(report),
        "time": _time(report),
        "modules": _module(report.tree),
        "operators": [_operator(row) for row in report.operators],
        "decisions": [asdict(choice) for choice in report.choices],
        "peak": asdict(report.peak),
        "timeline": _timeline(report),
        "curve": [_point(point) for point in report.curve],
        "measured": _measured(report),
    }
    finite = _finite(plain)
    assert isinstance(finite, dict)
    return finite


def _memory(report: Report) -> dict[str, Any]:
    plan = report.physical
    return {
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "resident_bytes": plan.resident_bytes,
        "arena_bytes": plan.arena_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "before_planning_bytes": report.before.peak_bytes,
        "page_file_bytes": plan.page_file_bytes,
        "paged_out_bytes": report.traffic.out_bytes,
        "paged_in_bytes": report.traffic.in_bytes,
    }


def _time(report: Report) -> dict[str, Any]:
    plan = report.physical
    return {
        "predicted_us": plan.predicted_time_us,
        "unlimited_us": plan.unlimited_time_us,
        "lower_bound_us": plan.lower_bound_time_us,
        "gap": report.gap,
        **asdict(report.split),
    }


def _module(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "operators": node.operators,
        "figures": asdict(node.figures),
        "sources": [line for line, _ in node.sources.most_common()],
        "children": [_module(child) for child in node.children],
    }


def _operator(row: OperatorRow) -> dict[str, Any]:
    operator = row.operator
    return {
        "operator": operator.id,
        "name": operator.name,
        "module": operator.module,
        "target": operator.target,
        "phase": operator.phase,
        "source_line": operator.source,
        "runs": row.runs,
        "time_us": row.time_us,
        "measured_us": row.measured_us,
        "estimate": row.source,
    }


def _timeline(report: Report) -> list[dict[str, Any]]:
    rows = []
    for index, step in enumerate(report.physical.instructions):
        if isinstance(step, Compute):
            kind, name = "recompute" if step.run else "compute", report.logical.operators[step.operator].name
        else:
            direction = "in" if isinstance(step, PageIn) else "out"
            kind = f"await-{step.direction}" if isinstance(step, Await) else f"page-{direction}"
            name = report.logical.storages[report.physical.lives[step.life].storage].name
        times = report.times
        row = {"kind": kind, "name": name, "start_us": times.start_us[index], "end_us": times.end_us[index]}
        rows.append(row | {"arena_bytes": times.live_bytes[index]})
    return rows


def _point(point: CurvePoint) -> dict[str, Any]:
    return {
        "budget_bytes": point.budget_bytes,
        "predicted_peak_bytes": point.predicted_peak_bytes,
        "predicted_time_us": point.predicted_time_us,
        "lower_bound_time_us": point.lower_bound_time_us,
    }


def _measured(report: Report) -> dict[str, Any] | None:
    if report.measurements is None:
        return None
    error = asdict(report.error) if report.error else None
    return asdict(report.measurements) | {"q_error": error}


def _finite(value: Any) -> Any:
    """JSON has no infinity: such figures become None. Tuples become lists."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
