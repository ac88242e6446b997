"""What was measured, as tables: one a workload for the terminal, one for all in Markdown.

    python -m benchmarks.report FILE...     prints both for what `benchmarks.run --json` wrote
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

COLUMNS = (
    "system",
    "above state MiB",
    "total MiB",
    "budget MiB",
    "predicted",
    "time / eager",
    "from-to",
    "equal to eager",
    "plan s",
    "bound gap",
)


def table(result: Row) -> str:
    """One workload, aligned for a terminal; what failed is said below it."""
    rows = [COLUMNS, *(_cells(row) for row in result["systems"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    errors = [f"  {row['label']}: {row['error']}" for row in result["systems"] if row["error"]]
    return "\n".join(["", _title(result), *lines, *errors])


def markdown(results: list[Row]) -> str:
    """All workloads as one Markdown table: a cell is the peak in MiB, all included, and the time by eager's."""
    labels = list(dict.fromkeys(row["label"] for result in results for row in result["systems"]))
    lines = ["", "| | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    for result in results:
        cells = {row["label"]: _short(row) for row in result["systems"]}
        lines.append(f"| {result['workload']} | " + " | ".join(cells.get(label, "") for label in labels) + " |")
    return "\n".join(lines)


def _title(result: Row) -> str:
    first = result["first_planning_s"]
    note = f" (first planning, with measuring: {first:.1f} s)" if first is not None else ""
    return f"{result['workload']}{note}"


def _cells(row: Row) -> tuple[str, ...]:
    held, ratios = row["memory"], row["time_ratios"]
    return (
        row["label"],
        _mebibytes(held.get("above_state_bytes")),
        _mebibytes(held.get("peak_bytes")),
        _mebibytes(held.get("budget_bytes")),
        _prediction(held),
        f"{median(ratios):.3f}" if ratios else "",
        f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "",
        _equality(row),
        f"{median(row['planning_s']):.1f}" if row["planning_s"] else "",
        _gap(held),
    )


def _short(row: Row) -> str:
    """ "376 @ 1.24": the peak in MiB, at time by eager's."""
    if row["error"]:
        return "–"
    ratio = f" @ {median(row['time_ratios']):.2f}" if row["time_ratios"] else ""
    return f"{row['memory']['peak_bytes'] / 2**20:.0f}{ratio}"


def _mebibytes(amount: int | None) -> str:
    return "" if amount is None else f"{amount / 2**20:.1f}"


def _prediction(held: Row) -> str:
    """The predicted peak by the measured one: "-0.8%" when it was that much below."""
    if "predicted_peak_bytes" not in held or "peak_bytes" not in held:
        return ""
    return f"{held['predicted_peak_bytes'] / held['peak_bytes'] - 1:+.1%}"


def _equality(row: Row) -> str:
    if row["losses_equal"] is None:
        return ""
    parts = {"losses": row["losses_equal"], "parameters": row["parameters_equal"]}
    different = [name for name, equal in parts.items() if not equal]
    return f"not {', '.join(different)}" if different else "bit for bit"


def _gap(held: Row) -> str:
    """How far the plan's predicted time is above the proven bound."""
    if "lower_bound_time_us" not in held:
        return ""
    return f"{held['predicted_time_us'] / held['lower_bound_time_us'] - 1:.1%}"


if __name__ == "__main__":
    measured = [result for file in sys.argv[1:] for result in json.loads(Path(file).read_text())]
    print(*map(table, measured), markdown(measured), sep="\n")
