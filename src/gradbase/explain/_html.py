"""EXPLAIN as one page that needs no network: charts, tables, and nothing else to load."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

from gradbase.common.units import format_bytes, format_us
from gradbase.explain._charts import WIDTH, Column, about, column_x, columns, curve_chart, memory_chart
from gradbase.explain._groups import Group, choice_groups, holder_groups, operator_groups
from gradbase.explain._measured import Measurements
from gradbase.explain._report import Choice, CurvePoint, Holder, OperatorRow, Report, build_report
from gradbase.explain._timeline import LAYERS
from gradbase.explain._tree import Node, folded
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import Action, PhysicalPlan

_MOST_OPERATORS, _MOST_CHOICES, _MOST_HOLDERS, _DEPTH = 15, 20, 12, 4


def render_html(
    logical: LogicalPlan,
    physical: PhysicalPlan,
    costs: Costs,
    *,
    measurements: Measurements | None = None,
    curve: Iterable[CurvePoint] = (),
    device_profile: str | None = None,
    title: str = "Training step",
) -> str:
    """The plan as one HTML page: memory over the step, modules, operators, decisions and the memory/time curve.

    Everything is inline, in light and dark, so that the file can be mailed and opened offline.
    """
    report = build_report(logical, physical, costs, measurements, curve, device_profile)
    room = files(__package__)
    stack = columns(report)
    body = "\n".join([
        _heading(report, title),
        _cards(report),
        _memory(report, stack),
        _curve(report),
        _modules(report),
        _operators(report),
        _choices(report, "recompute", "Recomputed", "Dropped after one use and computed again for a later one."),
        _choices(report, "page", "Paged", "Out to the slow tier after one use, back in before a later one."),
        _peak(report),
    ])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · gradbase</title>\n<style>\n{room.joinpath('page.css').read_text('utf-8')}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n{_data(report, stack)}"
        f"<script>\n{room.joinpath('page.js').read_text('utf-8')}</script>\n</body>\n</html>\n"
    )


def _data(report: Report, stack: Sequence[Column]) -> str:
    rows = [{"x": round(column_x(report, column), 1), "text": about(report, column)} for column in stack]
    text = json.dumps({"width": WIDTH, "columns": rows}).replace("</", "<\\/")  # names must not end the script
    return f'<script type="application/json" id="memory-data">{text}</script>\n'


def _heading(report: Report, title: str) -> str:
    plan, logical = report.physical, report.logical
    rules = f" by {', '.join(plan.rules)}" if plan.rules else ""
    counts = ", ".join(f"{count} {source}" for source, count in report.estimates.items())
    lines = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(logical.operators)} operators on {escape(logical.device)}, planned in {plan.planning_s:.2f} s"
        f"{escape(rules)}. Estimates of operator times: {escape(counts)}.</p>",
    ]
    if report.device_profile:
        device = f"{escape(report.device_profile)}, which is not in this machine"
        lines.append(f'<p class="note">All figures are estimates for {device}. Nothing was run.</p>')
    lines += [f'<p class="note">{escape(note)}</p>' for note in logical.notes]
    return "\n".join(lines)


def _cards(report: Report) -> str:
    plan, split = report.physical, report.split
    peak = plan.predicted_peak_bytes
    budget = "none" if plan.budget_bytes is None else format_bytes(plan.budget_bytes)
    share = "" if not plan.budget_bytes else f"{peak / plan.budget_bytes:.1%} of the budget; "
    slower = f"{plan.predicted_time_us / plan.unlimited_time_us:.3f}× unlimited; " if plan.unlimited_time_us else ""
    cards = [
        ("Budget", budget, f"{format_bytes(report.before.peak_bytes)} needed before planning"),
        ("Predicted peak", format_bytes(peak), f"{share}{format_bytes(plan.resident_bytes)} of it resident"),
        (
            "Predicted time",
            format_us(plan.predicted_time_us),
            f"{slower}{format_us(split.recompute_us)} recomputing, {format_us(split.waiting_us)} waiting",
        ),
    ]
    if report.gap is not None:
        bound = format_us(plan.lower_bound_time_us)
        cards.append(("Proven bound", bound, f"no plan in this order is faster; gap {report.gap:.1%}"))
    if plan.page_file_bytes:
        moved = report.traffic
        each = f"{format_bytes(moved.out_bytes)} out, {format_bytes(moved.in_bytes)} in"
        cards.append(("Paging", format_bytes(moved.out_bytes + moved.in_bytes), each))
    cards += _measured_cards(report)
    items = (
        f'<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd><dd class="small">{escape(more)}</dd></div>'
        for name, figure, more in cards
    )
    return f'<dl class="cards">{"".join(items)}</dl>'


def _measured_cards(report: Report) -> Iterator[tuple[str, str, str]]:
    seen, plan = report.measurements, report.physical
    if seen is None:
        return
    if seen.measured_peak_bytes is not None:
        eager = "" if seen.eager_peak_bytes is None else f"; eager {format_bytes(seen.eager_peak_bytes)}"
        share = seen.measured_peak_bytes / max(plan.predicted_peak_bytes, 1)
        yield "Measured peak", format_bytes(seen.measured_peak_bytes), f"{share:.1%} of the predicted{eager}"
    if seen.median_step_time_us is not None:
        eager = "" if seen.eager_step_time_us is None else f"; eager {format_us(seen.eager_step_time_us)}"
        yield "Measured time", format_us(seen.median_step_time_us), f"median of {len(seen.step_time_us)} steps{eager}"
    if report.error is not None:
        more = f"median q-error of operators; 90th percentile {report.error.p90:.2f}×"
        yield "Estimation error", f"{report.error.median:.2f}×", more


def _memory(report: Report, stack: Sequence[Column]) -> str:
    shown = [name for layer, name in enumerate(LAYERS) if any(column.nbytes[layer] for column in stack)]
    legend = [f'<li><i style="background:var(--{name.replace(" ", "-")})"></i>{name}</li>' for name in shown]
    legend.append('<li><i class="stroke"></i>before planning</li>')
    if report.physical.budget_bytes is not None:
        legend.append('<li><i class="dashed"></i>budget</li>')
    return (
        "<h2>Memory over the step</h2>\n<p>Stacked: what the plan keeps in memory. Line: the same step in eager order"
        " with every value freed after its last use. Point at the chart, or focus it and use the arrow keys.</p>\n"
        f'<figure>{memory_chart(report, stack)}<ul class="legend">{"".join(legend)}</ul>'
        '<p class="readout" id="memory-readout" aria-live="polite">&nbsp;</p></figure>'
    )


def _curve(report: Report) -> str:
    points = sorted(report.curve, key=lambda point: point.budget_bytes)
    if not points:
        return ""
    legend = "".join([
        '<li><i style="background:var(--activation)"></i>plan</li>',
        '<li><i class="bound"></i>proven bound</li>',
        '<li><i class="dashed"></i>this budget</li>' if report.physical.budget_bytes is not None else "",
    ])
    return (
        "<h2>Memory against time</h2>\n<p>From the least possible memory to unlimited.</p>\n"
        f'<figure>{curve_chart(points, report.physical.budget_bytes)}<ul class="legend">{legend}</ul></figure>'
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of finished cells: the first of each is its heading."""
    head = "".join(
        f'<th scope="col"{_left(column in left)}>{escape(text)}</th>' for column, text in enumerate(heads)
    )
    body = []
    for first, *cells in rows:
        marked = (
            cell if cell.startswith("<td") else f"<td{_left(column in left)}>{cell}</td>"
            for column, cell in enumerate(cells, start=1)
        )
        body.append(f'<tr><th scope="row" class="left">{first}</th>{"".join(marked)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _left(yes: bool) -> str:
    return ' class="left"' if yes else ""


def _bytes_cell(nbytes: int) -> str:
    return format_bytes(nbytes) if nbytes else '<span class="quiet">·</span>'


def _time_cell(time_us: float | None) -> str:
    return format_us(time_us) if time_us else '<span class="quiet">·</span>'


def _modules(report: Report) -> str:
    heads = ["Module", "Forward", "Backward", "Update", "Again", "Live at most", "Kept", "Recomputed", "Paged"]
    if report.measurements:
        heads.insert(5, "Measured")
    nodes = (entry for entry in folded(report.tree).walk() if entry[0] <= _DEPTH)
    rows = (_module(node, depth, bool(report.measurements)) for depth, node in nodes)
    return (
        "<h2>Modules</h2>\n<p>“Again” is time spent on recomputation. Kept, recomputed and paged count what the module"
        f" writes, or first reads.</p>\n{_table(heads, rows)}"
    )


def _module(node: Node, depth: int, measured: bool) -> list[str]:
    figures = node.figures
    count = f' <span class="quiet">×{node.count}</span>' if node.count > 1 else ""
    times = [figures.forward_us, figures.backward_us, figures.update_us, figures.recompute_us]
    if measured:
        times.append(figures.measured_us or 0.0)
    sizes = (figures.live_bytes, figures.kept_bytes, figures.recomputed_bytes, figures.paged_bytes)
    name = f'<span style="padding-left:{1.2 * depth:.1f}em">{escape(node.name)}{count}</span>'
    return [name, *map(_time_cell, times), *map(_bytes_cell, sizes)]


def _operators(report: Report) -> str:
    total_us = sum(row.time_us for row in report.operators) or 1.0
    heads = ["Operator", "Module", "Line", "Kernel", "Runs", "Time", "Share"]
    if report.measurements:
        heads.append("Measured")
    groups = operator_groups(report.operators)[:_MOST_OPERATORS]
    largest = max((sum(row.time_us for row in group.members) for group in groups), default=0.0) or 1.0
    rows = (_operator(group, total_us, largest, bool(report.measurements)) for group in groups)
    return f"<h2>Most expensive operators</h2>\n{_table(heads, rows, left=(0, 1, 2, 3))}"


def _operator(group: Group[OperatorRow], total_us: float, largest_us: float, measured: bool) -> list[str]:
    operator = group.members[0].operator
    texts = [escape(text) for text in (group.name, group.module, operator.source, operator.target)]
    time_us = sum(row.time_us for row in group.members)
    bar = f'<td class="bar" style="--share:{time_us / largest_us:.1%}">{time_us / total_us:.1%}</td>'
    cells = [*texts, str(sum(row.runs for row in group.members)), format_us(time_us), bar]
    return [*cells, _time_cell(sum(row.measured_us or 0.0 for row in group.members))] if measured else cells


def _choices(report: Report, action: Action, heading: str, meaning: str) -> str:
    chosen = [choice for choice in report.choices if choice.action == action]
    if not chosen:
        return ""
    total = format_bytes(sum(choice.nbytes for choice in chosen))
    groups = choice_groups(chosen)
    rest = [choice for group in groups[_MOST_CHOICES:] for choice in group.members]
    more = f" Not shown: {len(rest)} with {format_bytes(sum(choice.nbytes for choice in rest))}." if rest else ""
    heads = ["Storage", "Module", "Bytes", "Adds", "Between", "Why"]
    table = _table(heads, map(_choice, groups[:_MOST_CHOICES]), left=(0, 1, 4, 5))
    return f"<h2>{heading}: {total}</h2>\n<p>{meaning}{more}</p>\n{table}"


def _choice(group: Group[Choice]) -> list[str]:
    """Where and why are the first member's; the others of a group stand as it does in their blocks."""
    first = group.members[0]
    nbytes, cost_us = (sum(figures) for figures in zip(*((c.nbytes, c.cost_us) for c in group.members), strict=True))
    between = f'<td class="why">{escape(first.after)} and {escape(first.before)}</td>'
    why = f'<td class="why">{escape(first.why)}</td>'
    return [escape(group.name), escape(group.module), format_bytes(nbytes), format_us(cost_us), between, why]


def _peak(report: Report) -> str:
    peak = report.peak
    if peak.operator == -1:
        return ""
    groups = holder_groups(peak.holders)
    name = escape(report.logical.operators[peak.operator].name)
    rest = [held for group in groups[_MOST_HOLDERS:] for held in group.members]
    more = f" Not shown: {len(rest)} that hold {format_bytes(sum(held.nbytes for held in rest))}." if rest else ""
    rows = map(_held, groups[:_MOST_HOLDERS])
    return (
        f"<h2>What is live at the peak</h2>\n<p>{format_bytes(peak.total_bytes)} while {name} runs (instruction"
        f" {peak.instruction}).{more}</p>\n{_table(['Storage', 'Module', 'Kind', 'Bytes'], rows, left=(0, 1, 2))}"
    )


def _held(group: Group[Holder]) -> list[str]:
    nbytes = sum(held.nbytes for held in group.members)
    return [escape(group.name), escape(group.module), group.members[0].layer, format_bytes(nbytes)]
