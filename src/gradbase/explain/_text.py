"""EXPLAIN for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradbase.common.units import format_bytes, format_us
from gradbase.explain._curve import render_curve_text
from gradbase.explain._groups import Group, choice_groups, holder_groups
from gradbase.explain._measured import Measurements
from gradbase.explain._report import Choice, CurvePoint, Holder, Report, build_report
from gradbase.explain._tree import Node, folded
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import Action, PhysicalPlan

_NOTHING = "·"
_MOST = 8  # storages listed at the peak, and decisions of one kind


def render_text(
    logical: LogicalPlan,
    physical: PhysicalPlan,
    costs: Costs,
    *,
    measurements: Measurements | None = None,
    curve: Iterable[CurvePoint] = (),
    device_profile: str | None = None,
    depth: int = 3,
    source: bool = False,
) -> str:
    """The plan explained as text, without colour and with a newline at the end.

    `measurements` adds measured beside estimated figures (EXPLAIN ANALYZE), `curve` the memory/time curve.
    `device_profile` names the profile when the device is not in this machine. Modules are shown `depth` levels
    deep; `source` adds the user's lines.
    """
    report = build_report(logical, physical, costs, measurements, curve, device_profile)
    sections = [
        [*_header(report), *_measured(report), *_notes(report)],
        _tree_lines(report, depth, source),
        list(_decisions(report, "recompute", "recomputed: dropped after one use, computed again for a later one")),
        list(_decisions(report, "page", "paged: out to the slow tier after one use, back in before a later one")),
        list(_peak(report)),
        render_curve_text(report.curve).splitlines(),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _header(report: Report) -> Iterator[str]:
    plan = report.physical
    yield (
        f"plan of one step on {report.logical.device}:"
        f" {len(report.logical.operators)} operators, {len(plan.instructions)} instructions"
    )
    if report.device_profile:
        yield _row("device", f"{report.device_profile}, which is not in this machine: all figures are estimates")
    peak = plan.predicted_peak_bytes
    if plan.budget_bytes is None:
        yield _row("budget", "none: everything is kept")
    else:
        yield _row("budget", f"{format_bytes(plan.budget_bytes)}; the peak takes {_share(peak, plan.budget_bytes)}")
    yield _row(
        "peak",
        f"{format_bytes(peak)} = resident {format_bytes(plan.resident_bytes)} + arena {format_bytes(plan.arena_bytes)}"
        f" + scratch {format_bytes(plan.scratch_bytes)}; {format_bytes(report.before.peak_bytes)} before planning",
    )
    yield from _time_rows(report)
    if plan.page_file_bytes:
        yield _row(
            "paging",
            f"{format_bytes(report.traffic.out_bytes)} out, {format_bytes(report.traffic.in_bytes)} in a step;"
            f" page file of {format_bytes(plan.page_file_bytes)}",
        )
    yield _row("estimates", _estimates(report))
    rules = f" by {', '.join(plan.rules)}" if plan.rules else ""
    yield _row("planned", f"in {plan.planning_s:.2f} s{rules}")


def _time_rows(report: Report) -> Iterator[str]:
    plan, split = report.physical, report.split
    parts = [f"computing {format_us(split.first_us)}"]
    for label, time_us in (
        ("recomputing", split.recompute_us),
        ("waiting for pages", split.waiting_us),
        ("slowed by transfers", split.slowed_us),
    ):
        if time_us:
            parts.append(f"{label} {format_us(time_us)}")
    yield _row("time", f"{format_us(plan.predicted_time_us)} = {' + '.join(parts)}")
    if plan.unlimited_time_us > 0:
        ratio = f"{plan.predicted_time_us / plan.unlimited_time_us:.3f}×"
        yield _row("unlimited", f"{format_us(plan.unlimited_time_us)} with everything kept; this plan takes {ratio}")
    if report.gap is not None:
        yield _row(
            "bound",
            f"{format_us(plan.lower_bound_time_us)}: no plan in this order within the budget is faster (proven);"
            f" gap {report.gap:.1%}",
        )


def _estimates(report: Report) -> str:
    text = ", ".join(f"{count} {source}" for source, count in report.estimates.items())
    tier = report.costs.tier
    if tier and report.physical.page_file_bytes:
        text += f"; slow tier {tier.source}"
    return text if "measured" in report.estimates else f"{text}; nothing was measured"


def _row(label: str, text: str) -> str:
    return f"  {label:<10} {text}"


def _measured(report: Report) -> Iterator[str]:
    seen, plan = report.measurements, report.physical
    if seen is None:
        return
    if seen.measured_peak_bytes is not None:
        peak = seen.measured_peak_bytes
        text = f"peak {format_bytes(peak)}, {_share(peak, plan.predicted_peak_bytes)} of the predicted"
        if plan.budget_bytes is not None:
            text += f", {_share(peak, plan.budget_bytes)} of the budget"
        yield _row("measured", text)
    if seen.median_step_time_us is not None:
        yield _row(
            "measured",
            f"step {format_us(seen.median_step_time_us)} (median of {len(seen.step_time_us)}),"
            f" {seen.median_step_time_us / plan.predicted_time_us:.3f}× the predicted",
        )
    if seen.eager_peak_bytes is not None:
        eager = f"peak {format_bytes(seen.eager_peak_bytes)}"
        if seen.eager_step_time_us is not None:
            eager += f", step {format_us(seen.eager_step_time_us)}"
        yield _row("eager", eager)
    if report.error is not None:
        yield _row(
            "error",
            f"q-error of operator times: median {report.error.median:.2f}, 90th percentile {report.error.p90:.2f}"
            f" over {report.error.count} runs",
        )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _notes(report: Report) -> Iterator[str]:
    for note in report.logical.notes:
        yield _row("note", note.replace("\n", "\n" + _row("", "")))


def _tree_lines(report: Report, depth: int, source: bool) -> list[str]:
    heads = ["module", "forward", "backward", "update", "again", "live", "kept", "recomputed", "paged"]
    if report.measurements:
        heads[5:5] = ["estimated", "measured"]
    rows = [heads]
    for label, node in _labelled(folded(report.tree), depth):
        rows.append([label, *_figures(node, bool(report.measurements))])
        if source and node.sources:
            rows[-1].append(_lines_of(node))
    return _aligned(rows)


def _labelled(node: Node, depth: int, indent: str = "", branch: str = "") -> Iterator[tuple[str, Node]]:
    yield f"{indent}{branch}{node.name}" + (f" ×{node.count}" if node.count > 1 else ""), node
    below = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
    children = node.children if depth > 0 else []
    for child in children:
        yield from _labelled(child, depth - 1, below, "└─ " if child is children[-1] else "├─ ")


def _figures(node: Node, measured: bool) -> Iterator[str]:
    figures = node.figures
    for time_us in (figures.forward_us, figures.backward_us, figures.update_us, figures.recompute_us):
        yield format_us(time_us) if time_us else _NOTHING
    if measured:
        yield format_us(figures.time_us)
        yield _NOTHING if figures.measured_us is None else format_us(figures.measured_us)
    for nbytes in (figures.live_bytes, figures.kept_bytes, figures.recomputed_bytes, figures.paged_bytes):
        yield format_bytes(nbytes) if nbytes else _NOTHING


def _lines_of(node: Node) -> str:
    (line, _), *others = node.sources.most_common()
    return f"{line} and {len(others)} more" if others else line


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of even width: the first to the left, figures to the right, a line of source as it is."""
    count = len(rows[0])
    widths = [max(len(row[column]) for row in rows) for column in range(count)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in range(1, count))]
        lines.append("  ".join([*cells, *row[count:]]).rstrip())
    return lines


def _decisions(report: Report, action: Action, title: str) -> Iterator[str]:
    chosen = [choice for choice in report.choices if choice.action == action]
    if not chosen:
        return
    yield f"{title} ({len(chosen)}, {format_bytes(sum(choice.nbytes for choice in chosen))})"
    groups = choice_groups(chosen)
    yield from _aligned_but_last(map(_choice, groups[:_MOST]))
    if rest := [choice for group in groups[_MOST:] for choice in group.members]:
        yield f"  and {len(rest)} more, {format_bytes(sum(choice.nbytes for choice in rest))}"


def _choice(group: Group[Choice]) -> list[str]:
    first = group.members[0]
    which = "the first between" if len(group.members) > 1 else "between"
    reason = f"{group.module}, {which} {first.after} and {first.before}: {first.why}"
    nbytes = sum(choice.nbytes for choice in group.members)
    return [f"  {group.name}", format_bytes(nbytes), format_us(sum(c.cost_us for c in group.members)), reason]


def _aligned_but_last(rows: Iterable[list[str]]) -> list[str]:
    *_, last = columns = list(zip(*rows, strict=True))
    heads = [list(row) for row in zip(*columns[:-1], strict=True)]
    return [f"{line}  {text}" for line, text in zip(_aligned(heads), last, strict=True)]


def _peak(report: Report) -> Iterator[str]:
    peak = report.peak
    if peak.operator == -1:
        return
    operator = report.logical.operators[peak.operator]
    place = f" in {operator.module}" if operator.module else ""
    yield f"most is live at instruction {peak.instruction}, {operator.name}{place}: {format_bytes(peak.total_bytes)}"
    groups = holder_groups(peak.holders)
    yield from _aligned_but_last(map(_held, groups[:_MOST]))
    if rest := [held for group in groups[_MOST:] for held in group.members]:
        yield f"  and {len(rest)} more, {format_bytes(sum(held.nbytes for held in rest))}"


def _held(group: Group[Holder]) -> list[str]:
    nbytes = sum(held.nbytes for held in group.members)
    return [f"  {group.name}", format_bytes(nbytes), f"{group.members[0].layer}, {group.module}"]
