"""Kill a whole job, and go on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def killed_and_resumed(
    kind: str,
    store: Path,
    steps: int,
    kills: tuple[int, ...],
    logging: str = "physical",
    codec: str = "",
    extra: Mapping[str, str] | None = None,
) -> tuple[str, list[int]]:
    """The digest of a job whose driver is killed after so many lines, and the first step after every start."""
    firsts = []
    for lines in (*kills, None):
        process = _started([kind, str(store), str(steps), logging, *([codec] if codec else [])], extra or {})
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)] if lines else process.stdout.readlines()
        if lines:
            process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait(timeout=60)
        firsts.append(next(int(line.split()[1]) for line in said if line.startswith("step")))
    return said[-1].split()[1], firsts


def _started(arguments: list[str], extra: Mapping[str, str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.driver", *arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": path, **extra},
        stdout=subprocess.PIPE,
        text=True,
    )
