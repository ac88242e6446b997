"""Trials in a process group of their own: whatever they start is gone when they are over, however that comes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[3]


def results_of(command: Sequence[str], limit_s: float) -> list[dict[str, Any]]:
    """The JSON objects that a command printed, one a line, until it ended or `limit_s` had passed."""
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
    finally:
        _end(process)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]  # Ray prints there too


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
