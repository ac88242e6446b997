"""A new process for every test of malloc: what it was told in one would hold in the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SOURCES = Path(__file__).parents[2] / "src"


def printed(program: str, **environment: str) -> str:
    """What a program prints, run without the settings of malloc that this process may have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"PYTHONPATH": str(_SOURCES)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
