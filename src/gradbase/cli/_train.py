"""`gradbase train`: a recipe, trained inside its budget."""

from __future__ import annotations

import argparse
import hashlib
import logging
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gradbase.catalog import Catalog, RunRecord
from gradbase.cli import _compare, _workers
from gradbase.cli._console import Console
from gradbase.cli._planning import check, correct_statistics, plan_event, plan_line, planning_arguments, write_text
from gradbase.common.errors import CatalogError
from gradbase.common.units import format_bytes, format_us
from gradbase.ir import format_physical

if TYPE_CHECKING:
    from gradbase.cli._training import History
    from gradbase.cli.recipe import Job, Recipe
    from gradbase.compiled import Step

_log = logging.getLogger("gradbase.cli")

DONE, INTERRUPTED = 0, 130


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Plan, train, report. Raises GradbaseErrors; KeyboardInterrupt when not one step was done."""
    check(arguments)
    if _workers.wanted(arguments):
        return _workers.run(arguments, console)
    # torch takes seconds: after the arguments are known to be good
    from gradbase.cli._state import check_savable
    from gradbase.cli.recipe import load_recipe

    if arguments.save:
        check_savable(arguments.save)
    recipe = load_recipe(arguments.recipe)
    with Catalog(arguments.catalog) as catalog, recipe.blamed("a step"):
        summary, history = _trained(arguments, recipe, catalog, console)
    if arguments.compare_eager and not history.interrupted:
        summary |= _compare.beside_eager(arguments, history.losses, summary["parameters_sha256"], console)
    console.event("summary", **summary)
    for line in _summary_lines(summary, history):
        console.say(line)
    return INTERRUPTED if history.interrupted else DONE


def _trained(
    arguments: argparse.Namespace, recipe: Recipe, catalog: Catalog, console: Console
) -> tuple[dict[str, Any], History]:
    """Everything up to the summary's own figures. When it returns, model and step are gone: their memory is eager's."""
    from gradbase.cli._state import parameters_sha256, save_state
    from gradbase.cli._training import run_steps
    from gradbase.cli.recipe import start

    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    job = start(recipe, arguments.seed)
    with _compiled(arguments, job, catalog, console) as step:
        _announce(step, console)
        history = run_steps(job, step, arguments.steps, console)
        summary = _summary(step, history) | {"parameters_sha256": parameters_sha256(job.model)}
        _reports(arguments, step, console)
        _record(catalog, recipe.path, step, summary, started_at)
    if arguments.save:
        save_state(job.model, arguments.save)
    return summary, history


def _compiled(arguments: argparse.Namespace, job: Job, catalog: Catalog, console: Console) -> Step:
    from gradbase import compiled

    given = planning_arguments(arguments, job, catalog, console)
    return compiled.compile(job.model, job.recipe.loss, job.optimizer, job.first, spill=arguments.spill, **given)


def _announce(step: Step, console: Console) -> None:
    console.progress.clear()
    console.event("plan", **plan_event(step.explanation, step.planning_s))
    if not console.json_lines:
        console.say(step.explanation.render("text", depth=2))
    console.say(plan_line(step.plan, step.eager_peak_bytes))


def _summary(step: Step, history: History) -> dict[str, Any]:
    """What the event "summary" says of the steps."""
    return {
        "steps": history.steps,
        "measured_peak_bytes": step.measured_peak_bytes,
        "budget_bytes": step.budget_bytes,
        "predicted_peak_bytes": step.plan.predicted_peak_bytes,
        "median_step_time_us": median(history.times_us),
        "predicted_time_us": step.plan.predicted_time_us,
        "interrupted": history.interrupted,
    }


def _reports(arguments: argparse.Namespace, step: Step, console: Console) -> None:
    """What was asked for of the plan, with what was measured."""
    measurements = step.measurements()
    if arguments.analyze:
        console.say(step.explanation.render("text", measurements=measurements))
        correct_statistics(step, console)
    if arguments.html:
        write_text(arguments.html, step.explanation.render("html", measurements=measurements))
    if arguments.perfetto:
        write_text(arguments.perfetto, step.explanation.render("perfetto", measurements=measurements))


def _record(catalog: Catalog, recipe: Path, step: Step, summary: dict[str, Any], started_at: str) -> None:
    """Keep the run's history; a catalogue that cannot take it must not cost the run."""
    digest = hashlib.sha256(format_physical(step.plan).encode()).hexdigest()[:16]
    names = ("budget_bytes", "predicted_peak_bytes", "measured_peak_bytes", "predicted_time_us", "median_step_time_us")
    figures = {name: summary[name] for name in (*names, "steps")}
    try:
        catalog.record_run(RunRecord(str(recipe), digest, started_at=started_at, **figures))
    except CatalogError as error:
        _log.warning("the run is not in the catalogue: %s", error)


def _conclude(summary: dict[str, Any], history: History, console: Console) -> None:
    for line in _summary_lines(summary, history):
        console.say(line)


def _summary_lines(summary: dict[str, Any], history: History) -> list[str]:
    ended = "interrupted after" if history.interrupted else "done:"
    steps = f"{history.steps} step{'' if history.steps == 1 else 's'}"
    lines = [f"{ended} {steps}, loss {history.losses[0]:.4f} at first, {history.losses[-1]:.4f} at last"]
    peak, budget = summary["measured_peak_bytes"], summary["budget_bytes"]
    memory = [f"measured peak {format_bytes(peak)}"]
    if budget:
        memory.append(f"budget {format_bytes(budget)} ({peak / budget:.1%} used)")
    if summary.get("eager_peak_bytes"):
        eager = summary["eager_peak_bytes"]
        memory.append(f"eager {format_bytes(eager)} (the peak is {peak / eager:.1%} of it)")
    lines.append(f"memory: {', '.join(memory)}")
    times = f"time: {format_us(summary['median_step_time_us'])} a step (median)"
    if summary.get("eager_step_time_us"):
        ratio = summary["median_step_time_us"] / summary["eager_step_time_us"]
        times += f", eager {format_us(summary['eager_step_time_us'])} ({ratio:.3f}× of it)"
    lines.append(times)
    if "losses_equal" in summary:
        verdict = "equal, bit for bit" if summary["losses_equal"] else "NOT equal"
        lines.append(f"losses of the first {summary['compared_steps']} steps, beside eager's: {verdict}")
    return [*lines, f"parameters: sha256 {summary['parameters_sha256']}"]
