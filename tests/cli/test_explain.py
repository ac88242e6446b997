"""`gradbase explain` as a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.commands import RECIPES, called, events, gradbase

HUGE = '''
import torch
from torch import nn

WIDTH = 1 << 17

def model():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

def batches():
    yield torch.randn(64, WIDTH)

def loss(model, batch):
    return model(batch).square().mean()

def optimizer(model):
    return torch.optim.AdamW(model.parameters())
'''


def test_the_plan_is_on_standard_output(cache: Path) -> None:
    done = gradbase(cache, "explain", RECIPES / "tiny.py", "--memory", "30MB", "--source", "--depth", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plan of one step on")
    assert "tiny.py:" in done.stdout and "eager PyTorch needs" in done.stdout


def test_json(cache: Path) -> None:
    done = called(cache, "explain", RECIPES / "tiny.py", "--memory", "30MB", "--curve", "--points", 3, "--json")
    assert done.returncode == 0, done.stderr
    plan, explanation = events(done.stdout)
    assert plan["event"] == "plan" and plan["budget_bytes"] == 30_000_000
    assert explanation["event"] == "explanation" and len(explanation["curve"]) == 3
    budgets = [point["budget_bytes"] for point in explanation["curve"]]
    times = [point["predicted_time_us"] for point in explanation["curve"]]
    assert budgets == sorted(budgets) and times == sorted(times, reverse=True)


def test_hardware_that_is_not_here_and_a_model_that_fits_nowhere_here(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge.py"
    path.write_text(HUGE)
    done = called(cache, "explain", path, "--device", "h200", "--json")
    assert done.returncode == 0, done.stderr
    plan = events(done.stdout)[0]
    parameter_bytes = 2 * 4 * (1 << 17) ** 2
    assert plan["hypothetical"] is True and plan["device"] == "h200"
    assert plan["predicted_peak_bytes"] > 3 * parameter_bytes, "parameters and AdamW's two states"


def test_files(cache: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "plan.html", tmp_path / "plan.json"
    done = called(cache, "explain", RECIPES / "tiny.py", "--meta", "--html", page, "--perfetto", trace)
    assert done.returncode == 0, done.stderr
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    assert json.loads(trace.read_text())["traceEvents"]


def test_analyze_shows_measured_beside_estimated(cache: Path) -> None:
    done = called(cache, "explain", RECIPES / "settings.py", "--analyze")
    assert done.returncode == 0, done.stderr
    header = next(line for line in done.stdout.splitlines() if line.startswith("module"))
    assert "estimated" in header and "measured" in header
    assert "a word on standard output" not in done.stdout and "a batch" in done.stderr


def test_a_budget_that_cannot_be_met(cache: Path) -> None:
    done = called(cache, "explain", RECIPES / "tiny.py", "--memory", "1KB", "--json")
    assert done.returncode == 3
    assert [each["event"] for each in events(done.stdout)] == ["infeasible"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "h10"], "did you mean h100?"),
        (["--memory", "lots"], "memory 'lots' is not an amount"),
        (["--no-rule", "recompte"], "did you mean recompute?"),
        (["--rules", "page,nosuch"], "'nosuch' is not a planner rule"),
        (["--analyze", "--meta"], "leave one of them out"),
        (["--html", "/nonexistent/a.html"], "cannot write --html /nonexistent/a.html"),
    ],
)
def test_arguments_that_make_no_sense(cache: Path, arguments: list[str], told: str) -> None:
    done = called(cache, "explain", RECIPES / "tiny.py", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
