"""The command line as a process, and the eager loop that it must agree with."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from gradbase.cli import main

RECIPES = Path(__file__).parent / "recipes"
_SOURCES = Path(__file__).parents[2] / "src"


def environment(cache: Path) -> dict[str, str]:
    """This environment with a cache of its own and the sources of this tree."""
    return os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(_SOURCES), "PYTHONUNBUFFERED": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gradbase", *map(str, arguments)]


def gradbase(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, in a process of its own: importing torch and its optimizers takes seconds."""
    return subprocess.run(command(*arguments), env=environment(cache), capture_output=True, text=True, timeout=240)


@contextlib.contextmanager
def started(cache: Path, errors: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command at work, its standard output a pipe and its standard error a file; at the end there is none of it."""
    with errors.open("w") as file:
        process = subprocess.Popen(
            command(*arguments), env=environment(cache), stdout=subprocess.PIPE, stderr=file, text=True
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def called(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The same command in this process, for all that is not about streams, signals and fresh processes."""
    argv = [str(argument) for argument in arguments]
    out, errors = io.StringIO(), io.StringIO()
    here = mock.patch.dict(os.environ, XDG_CACHE_HOME=str(cache))
    with here, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(argv)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), errors.getvalue())


def events(standard_output: str) -> list[dict[str, Any]]:
    """Every line of standard output as strict JSON: NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in standard_output.splitlines()]


def eager_loop(path: Path, steps: int) -> tuple[list[float], str]:
    """Losses and the state dict's digest after `steps` batches of a plain loop, in the documented order of calls."""
    recipe = _loaded(path)
    torch.manual_seed(0)
    model = recipe.model()
    optimizer = recipe.optimizer(model)
    scheduler = recipe.scheduler(optimizer) if hasattr(recipe, "scheduler") else None
    accumulate, losses = getattr(recipe, "accumulate", 1), []
    for number, batch in enumerate(recipe.batches(), start=1):
        loss = recipe.loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        if number % accumulate == 0:
            if hasattr(recipe, "clip_grad_norm"):
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
        if number == steps:
            break
    return losses, digest(model.state_dict())


def digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names in sorted order, each followed by its tensor's raw bytes."""
    parts = (name.encode() + state[name].numpy().tobytes() for name in sorted(state))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _loaded(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"eager_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
