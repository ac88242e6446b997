"""What `train` and `explain` share: arguments checked before anything slow, then a recipe planned."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbase.catalog import Catalog
from gradbase.cli._console import Console
from gradbase.common.errors import CatalogError, UsageError
from gradbase.common.units import format_bytes, format_us, parse_memory
from gradbase.ir.physical import PhysicalPlan
from gradbase.planner import RULES

if TYPE_CHECKING:
    from gradbase.compiled import Explanation, Step

_log = logging.getLogger("gradbase.cli")


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError now for what would fail only after planning or training."""
    parse_memory(arguments.memory)
    rules_of(arguments)
    for option in ("html", "perfetto", "save"):
        target = getattr(arguments, option, None)
        if target is not None:
            _check_writable(target, f"--{option}")


def rules_of(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    """The planner rules that --rules and --no-rule leave on; None for all. Raises UsageError for an unknown name."""
    if arguments.rules is None and not arguments.no_rule:
        return None
    known = [rule.name for rule in RULES]
    chosen = known if arguments.rules is None else [name for name in arguments.rules.split(",") if name]
    for name in (*chosen, *arguments.no_rule):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hints = [f"did you mean {close[0]}?"] if close else []
            raise UsageError(f"{name!r} is not a planner rule", *hints, f"expected any of {', '.join(known)}")
    return tuple(name for name in known if name in chosen and name not in arguments.no_rule)


def planning_arguments(arguments: argparse.Namespace, job: Any, catalog: Catalog, console: Console) -> dict[str, Any]:
    """Keyword arguments that gradbase.compile and gradbase.compiled.explain both take."""
    return {
        "memory": arguments.memory,
        "clip_grad_norm": job.recipe.clip_grad_norm,
        "accumulate": job.recipe.accumulate,
        "catalog": catalog,
        "rules": rules_of(arguments),
        "on_progress": lambda stage, done, total: console.progress.update(stage, done, total),
    }


def plan_event(explanation: Explanation, planning_s: float) -> dict[str, Any]:
    """The fields of the event "plan"."""
    plan = explanation.physical
    return {
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_time_us": plan.predicted_time_us,
        "lower_bound_time_us": plan.lower_bound_time_us,
        "planning_s": planning_s,
        "unlimited_time_us": plan.unlimited_time_us,
        "predicted_eager_peak_bytes": explanation.eager_peak_bytes,
        "device": explanation.device,
        "hypothetical": explanation.hypothetical,
        "operators": len(explanation.logical.operators),
        "page_file_bytes": plan.page_file_bytes,
        "rules": list(plan.rules),
        "estimates": dict(plan.estimates),
    }


def plan_line(plan: PhysicalPlan, eager_peak_bytes: int) -> str:
    """The plan in one line, for people."""
    parts = [f"peak {format_bytes(plan.predicted_peak_bytes)}"]
    if plan.budget_bytes is not None:
        parts.append(f"of {format_bytes(plan.budget_bytes)} allowed")
    parts.append(f"(eager {format_bytes(eager_peak_bytes)}), {format_us(plan.predicted_time_us)} a step")
    if plan.unlimited_time_us > 0:
        parts.append(f"({plan.predicted_time_us / plan.unlimited_time_us:.3f}× of a step with no limit)")
    return "plan: " + " ".join(parts)


def correct_statistics(step: Step, console: Console) -> None:
    """Let later plans know what the steps showed; a catalogue that cannot take it must not cost the run."""
    try:
        corrected = step.correct_statistics()
    except CatalogError as error:
        _log.warning("the statistics are not corrected: %s", error)
        return
    if corrected:
        console.say(f"statistics: {corrected} were more than 1.5 times off and are corrected; the next plan uses them")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave what was there. Raises UsageError when the file system does not let us."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place when the block ends well."""
    path = path.expanduser()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "name another file") from error
    finally:
        part.unlink(missing_ok=True)


def _check_writable(path: Path, option: str) -> None:
    folder = path.expanduser().parent
    if path.expanduser().is_dir():
        raise UsageError(f"{option} {path} is a directory", "expected the name of a file")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"cannot write {option} {path}: {error.strerror}"
        raise UsageError(problem, f"{folder} must be a folder that exists and that you may write") from error
