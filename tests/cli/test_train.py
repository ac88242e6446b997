"""`gradbase train` as a process: events, exit codes, purity of standard output, and eager's own numbers."""

from __future__ import annotations

import csv
import io
import json
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.cli.commands import RECIPES, called, digest, eager_loop, events, gradbase, started

PLAN = {"budget_bytes", "predicted_peak_bytes", "predicted_time_us", "lower_bound_time_us", "planning_s"}
SUMMARY = {"steps", "measured_peak_bytes", "budget_bytes", "median_step_time_us", "parameters_sha256"}


@pytest.mark.parametrize(("name", "steps"), [("tiny", 4), ("settings", 6)])
def test_events_are_complete_and_agree_with_an_eager_loop(cache: Path, name: str, steps: int) -> None:
    done = gradbase(cache, "train", RECIPES / f"{name}.py", "--memory", "300MB", "--json")
    assert done.returncode == 0, done.stderr
    plan, *middle, summary = events(done.stdout)
    assert plan["event"] == "plan" and plan.keys() >= PLAN
    assert plan["budget_bytes"] == 300_000_000 and plan["predicted_peak_bytes"] <= plan["budget_bytes"]
    assert [(each["event"], each["step"]) for each in middle] == [("step", n) for n in range(1, steps + 1)]
    assert all(each["time_us"] > 0 for each in middle)
    assert summary["event"] == "summary" and summary.keys() >= SUMMARY
    assert summary["steps"] == steps and summary["interrupted"] is False
    assert summary["measured_peak_bytes"] > 0
    losses, sha256 = eager_loop(RECIPES / f"{name}.py", steps)
    assert [each["loss"] for each in middle] == losses
    assert summary["parameters_sha256"] == sha256
    assert "Traceback" not in done.stderr


def test_without_json_standard_output_is_empty_and_people_are_told(cache: Path) -> None:
    done = called(cache, "train", RECIPES / "tiny.py", "--steps", 2, "--analyze")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "plan of one step on cpu" in done.stderr
    assert "measured" in done.stderr and "done: 2 steps" in done.stderr
    assert "\r" not in done.stderr and "\x1b" not in done.stderr


def test_quiet_says_nothing(cache: Path) -> None:
    called(cache, "train", RECIPES / "tiny.py", "--steps", 1)  # so that nothing is measured for the first time
    done = gradbase(cache, "train", RECIPES / "tiny.py", "--steps", 1, "--quiet", "--json")
    assert [each["event"] for each in events(done.stdout)] == ["plan", "step", "summary"]
    assert done.stderr == ""


def test_a_budget_that_cannot_be_met(cache: Path) -> None:
    done = gradbase(cache, "train", RECIPES / "tiny.py", "--memory", "1KB", "--json")
    assert done.returncode == 3
    last = events(done.stdout)[-1]
    assert last["event"] == "infeasible" and last["least_bytes"] > 1000 and last["operator"]
    assert done.stderr.count("[budget-infeasible]") == 1 and "Traceback" not in done.stderr


def test_the_least_that_was_named_is_enough(cache: Path) -> None:
    refused = called(cache, "train", RECIPES / "tiny.py", "--memory", "1KB", "--json")
    least_bytes = events(refused.stdout)[-1]["least_bytes"]
    done = called(cache, "train", RECIPES / "tiny.py", "--memory", least_bytes, "--json")
    assert done.returncode == 0, done.stderr
    assert events(done.stdout)[-1]["parameters_sha256"] == eager_loop(RECIPES / "tiny.py", 4)[1]


def test_an_interrupt_stops_between_two_steps(cache: Path, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with started(cache, errors, "train", RECIPES / "endless.py", "--json") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]  # the plan and three steps
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        assert process.wait(timeout=120) == 130, errors.read_text()
    _, *steps, summary = events("".join(lines))
    assert summary["interrupted"] is True and summary["steps"] == len(steps) >= 3
    losses, sha256 = eager_loop(RECIPES / "endless.py", len(steps))
    assert [each["loss"] for each in steps] == losses
    assert summary["parameters_sha256"] == sha256
    assert "Traceback" not in errors.read_text() and "interrupted after" in errors.read_text()


def test_an_interrupt_while_planning(cache: Path, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with started(cache, errors, "train", RECIPES / "endless.py") as process:
        while not errors.read_text() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 130, errors.read_text()
    assert out == "" and "Traceback" not in errors.read_text()


def test_beside_eager(cache: Path) -> None:
    done = called(cache, "train", RECIPES / "settings.py", "--compare-eager", "--json")
    assert done.returncode == 0, done.stderr
    summary = events(done.stdout)[-1]
    assert summary["compared_steps"] == 5 and summary["losses_equal"] is True
    assert summary["eager_step_time_us"] > 0
    state_bytes = sum(t.nbytes for t in _model_of("settings").state_dict().values())
    assert summary["eager_peak_bytes"] > state_bytes
    assert "equal, bit for bit" in done.stderr


def test_what_is_saved_is_what_was_hashed(cache: Path, tmp_path: Path) -> None:
    page, trace, saved = (tmp_path / name for name in ("plan.html", "plan.json", "state.pt"))
    done = called(
        cache, "train", RECIPES / "tiny.py", "--html", page, "--perfetto", trace, "--save", saved, "--json"
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(saved, weights_only=True)
    assert digest(state) == events(done.stdout)[-1]["parameters_sha256"]
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    assert json.loads(trace.read_text())["traceEvents"]
    assert sorted(tmp_path.iterdir()) == sorted((page, trace, saved)), "nothing half written stays behind"


def test_safetensors_by_the_ending(cache: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    done = called(cache, "train", RECIPES / "tiny.py", "--save", tmp_path / "state.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    state = safetensors.load_file(tmp_path / "state.safetensors")
    assert digest(state) == events(done.stdout)[-1]["parameters_sha256"]


def test_batches_that_end_before_the_steps_do(cache: Path) -> None:
    done = called(cache, "train", RECIPES / "tiny.py", "--steps", 9)
    assert done.returncode == 0
    assert "batches() ended after 4 of 9 steps" in done.stderr


def test_a_loss_that_is_not_a_number_is_null(cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "diverges.py"
    source = (RECIPES / "tiny.py").read_text().replace("F.mse_loss(model(rows), targets)", "model(rows).sum() / 0")
    recipe.write_text(source)
    done = called(cache, "train", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert [each["loss"] for each in events(done.stdout)[1:-1]] == [None] * 4
    assert done.stderr.count("warning: the loss of step 1 is") == 1


def test_the_seed_and_the_rules(cache: Path) -> None:
    runs = [
        called(cache, "train", RECIPES / "tiny.py", "--json", *more)
        for more in (["--seed", 1], ["--seed", 1, "--no-rule", "reorder", "--no-rule", "inplace"])
    ]
    first, second = (events(run.stdout) for run in runs)
    assert first[-1]["parameters_sha256"] == second[-1]["parameters_sha256"] != eager_loop(RECIPES / "tiny.py", 4)[1]
    assert set(first[0]["rules"]) - set(second[0]["rules"]) == {"reorder", "inplace"}


def test_a_run_is_in_the_catalogue(cache: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.sqlite"
    called(cache, "train", RECIPES / "tiny.py", "--memory", "5MB", "--catalog", catalog)
    query = "SELECT recipe, budget_bytes, steps, measured_peak_bytes IS NOT NULL FROM runs"
    done = called(cache, "catalog", query, "--catalog", catalog, "--csv")
    assert list(csv.reader(io.StringIO(done.stdout)))[1:] == [[str(RECIPES / "tiny.py"), "5000000", "4", "1"]]


def _model_of(name: str) -> torch.nn.Module:
    from gradbase.cli.recipe import load_recipe

    return load_recipe(RECIPES / f"{name}.py").model()
