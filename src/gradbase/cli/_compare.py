"""The same recipe in eager PyTorch, in processes of its own: what `--compare-eager` shows."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradbase
from gradbase.cli._console import Console

STEPS = 5  # enough for a median; eager's run is beside the point of the command
MEMORY_STEPS = 3  # the first makes the optimizer's state

# glibc then gives large allocations back when they are freed, so that the resident set follows what is allocated.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def beside_eager(
    arguments: argparse.Namespace, losses: list[float], parameters_sha256: str, console: Console
) -> dict[str, Any]:
    """Fields for the summary: eager's peak and median step time, and whether its losses are equal bit for bit.

    Figures that could not be had are None, and people are told why.
    """
    steps = min(len(losses), STEPS)
    console.progress.update("running eager PyTorch for comparison", 0, None)
    timed = _eager(arguments, steps, False, console)
    measured = _eager(arguments, MEMORY_STEPS, True, console)
    found: dict[str, Any] = {
        "eager_peak_bytes": measured.get("peak_bytes"),
        "eager_step_time_us": timed.get("median_step_time_us"),
    }
    if timed:
        equal = [float(value).hex() for value in losses[:steps]] == timed["losses"]
        found |= {"compared_steps": steps, "losses_equal": equal}
        if steps == len(losses):
            found["parameters_equal"] = timed["parameters_sha256"] == parameters_sha256
    return found


def _eager(arguments: argparse.Namespace, steps: int, memory: bool, console: Console) -> dict[str, Any]:
    """What the eager process found; empty, and told, when it did not end well."""
    command = [sys.executable, "-m", "gradbase.cli._eager", str(arguments.recipe), "--steps", str(steps)]
    command += ["--seed", str(arguments.seed), *(["--memory"] if memory else [])]
    done = subprocess.run(command, env=_environment(memory), capture_output=True, text=True)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == -signal.SIGKILL:
        why = "it was killed, probably because the machine ran out of memory"
    else:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].strip()
    console.fail(f"warning: eager PyTorch gave no {'peak' if memory else 'time'}: {why}")
    return {}


def _environment(memory: bool) -> dict[str, str]:
    """This process's environment, with gradbase importable as it is here."""
    root = str(Path(gradbase.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | (_RETURN_MEMORY if memory else {})
