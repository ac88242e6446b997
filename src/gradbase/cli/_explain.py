"""`gradbase explain`: the plan of a recipe's step, on standard output."""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from typing import Any

from gradbase.catalog import Catalog
from gradbase.cli._console import Console
from gradbase.cli._planning import check, correct_statistics, plan_event, planning_arguments, rules_of, write_text
from gradbase.common.errors import UsageError
from gradbase.common.units import format_bytes
from gradbase.cost import get_profile
from gradbase.planner import curve

ANALYZED_STEPS = 4  # the first warms up; times are medians
_POINTS = 12


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Plan and print. Raises GradbaseErrors."""
    check(arguments)
    _check_own(arguments)
    from gradbase.cli.recipe import load_recipe, start  # torch takes seconds: after the arguments are known to be good

    recipe = load_recipe(arguments.recipe)
    job = start(recipe, arguments.seed, meta=arguments.meta or arguments.device is not None)
    with Catalog(arguments.catalog) as catalog, recipe.blamed("a step"):
        given = planning_arguments(arguments, job, catalog, console)
        if arguments.analyze:
            explanation, measurements, planning_s = _analyzed(job, given, console)
        else:
            explanation, measurements, planning_s = _planned(arguments, job, given)
        points = _curve(arguments, explanation, console)
    console.progress.clear()
    _print(arguments, console, explanation, planning_s, {"measurements": measurements, "curve": points})
    return 0


def _check_own(arguments: argparse.Namespace) -> None:
    if arguments.device is not None:
        get_profile(arguments.device)
    if arguments.analyze and (arguments.device is not None or arguments.meta):
        raise UsageError("--analyze runs steps, which --device and --meta cannot", "leave one of them out")


def _planned(arguments: argparse.Namespace, job: Any, given: dict[str, Any]) -> tuple[Any, None, float]:
    from gradbase import compiled

    began = time.perf_counter()
    explanation = compiled.explain(
        job.model, job.recipe.loss, job.optimizer, job.first, device=arguments.device, **given
    )
    return explanation, None, time.perf_counter() - began


def _analyzed(job: Any, given: dict[str, Any], console: Console) -> tuple[Any, Any, float]:
    """Run a few real steps: the plan of the step that updates, and what it was measured to take."""
    from gradbase import compiled

    with compiled.compile(job.model, job.recipe.loss, job.optimizer, job.first, **given) as step:
        for number, batch in enumerate(islice(job.batches, ANALYZED_STEPS * job.recipe.accumulate), start=1):
            given["on_progress"]("running steps", number, ANALYZED_STEPS * job.recipe.accumulate)
            step(batch)
        correct_statistics(step, console)
        return step.explanation, step.measurements(), step.planning_s


def _curve(arguments: argparse.Namespace, explanation: Any, console: Console) -> tuple[Any, ...]:
    if not (arguments.curve or arguments.points):
        return ()

    def tell(message: str) -> None:
        console.progress.update("curve", 0, None, message)

    points = arguments.points or _POINTS
    return curve(explanation.logical, explanation.costs, points, rules=rules_of(arguments), on_progress=tell)


def _print(
    arguments: argparse.Namespace, console: Console, explanation: Any, planning_s: float, shown: dict[str, Any]
) -> None:
    if arguments.html:
        write_text(arguments.html, explanation.render("html", **shown))
    if arguments.perfetto:
        write_text(arguments.perfetto, explanation.render("perfetto", **shown))
    if arguments.json:
        console.event("plan", **plan_event(explanation, planning_s))
        console.event("explanation", **json.loads(explanation.render("json", **shown)))
        return
    text = explanation.render("text", source=arguments.source, depth=arguments.depth, **shown)
    eager = f"eager PyTorch needs {format_bytes(explanation.eager_peak_bytes)} for the same step (predicted)"
    console.product(f"{text.rstrip()}\n\n{eager}")
