"""Recipes that are not as they must be: each has its message, with the user's own line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradbase.cli.recipe import Job, load_recipe, start
from gradbase.common.errors import UsageError
from tests.cli.commands import RECIPES, called, gradbase

TINY = (RECIPES / "tiny.py").read_text()

BAD = {
    "syntax": ("def model(:\n", "import of recipe.py failed: invalid syntax", "recipe.py:1: def model(:"),
    "null bytes": ("x = 1\0", "", ""),
    "import": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'", "recipe.py:1: import nothing"),
    "raises": ("x = 1 / 0", "failed: ZeroDivisionError: division by zero", "recipe.py:1: x = 1 / 0"),
    "exits": ("import sys; sys.exit(3)", "called sys.exit(3)", "recipe.py:1"),
    "empty": ("", "defines no model(), batches(), loss(), optimizer()", "def loss(model, batch) -> torch.Tensor"),
    "no loss": (TINY.replace("def loss", "def losses"), "defines no loss()", "def optimizer(model)"),
    "not a function": (TINY + "\nmodel = nn.Linear(1, 1)", "model in", "is a Linear, not a function"),
    "a list of batches": (TINY + "\nbatches = [1]", "is a list, not a function", "def batches() -> Iterable[batch]"),
    "arguments": (TINY.replace("def optimizer(model: nn.Module)", "def optimizer()"), "other arguments", "def opt"),
    "scheduler": (TINY + "\ndef scheduler(): ...", "takes other arguments", "def scheduler(optimizer)"),
    "clip": (TINY + "\nclip_grad_norm = -1", "clip_grad_norm in", "is -1"),
    "accumulate": (TINY + "\naccumulate = 1.5", "accumulate in", "is 1.5"),
}

BAD_WHEN_STARTED = {
    "model": ("def model():\n    return 3", "model() of", "returned int"),
    "model raises": ("def model():\n    raise RuntimeError('no weights')", "RuntimeError: no weights", "in_no_line"),
    "optimizer": ("def optimizer(model):\n    pass", "optimizer(model) of", "returned None"),
    "batches": ("def batches():\n    return 3", "batches() of", "expected an iterable"),
    "nothing": ("def batches():\n    return []", "yields nothing", "at least one batch"),
    "batches raises": ("def batches():\n    yield open('absent')", "FileNotFoundError", "yield open('absent')"),
    "scheduler": ("def scheduler(optimizer):\n    return 1", "scheduler(optimizer) of", "returned int"),
}


@pytest.fixture(autouse=True)
def _modules_stay_as_they_are() -> Iterator[None]:
    modules, paths = dict(sys.modules), list(sys.path)
    yield
    sys.path[:] = paths
    for name in sys.modules.keys() - modules.keys():
        if name.startswith(("recipe", "tiny", "endless", "settings")):
            del sys.modules[name]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_says_what_is_wrong_and_where(name: str, tmp_path: Path) -> None:
    source, *parts = BAD[name]
    path = tmp_path / "recipe.py"
    path.write_text(source)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("name", BAD_WHEN_STARTED)
def test_a_recipe_whose_functions_are_wrong(name: str, tmp_path: Path) -> None:
    source, *parts = BAD_WHEN_STARTED[name]
    path = tmp_path / "recipe.py"
    path.write_text(f"{TINY}\n{source}\n")
    recipe = load_recipe(path)
    with pytest.raises(UsageError) as caught:
        start(recipe, 0)
    line = f"recipe.py:{len(TINY.splitlines()) + 3}"
    assert all((line if part == "in_no_line" else part) in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("absent.py", "there is no recipe"), (".", "there is no recipe"), ("a.txt", "not a Python file")],
)
def test_what_is_no_file_of_python(path: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UsageError, match=problem):
        load_recipe(tmp_path / path)


def test_the_order_of_calls_and_the_batches(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    calls = "\n".join(f"{name} = (lambda f: lambda *a: (order.append('{name}'), f(*a))[1])({name})" for name in _NAMES)
    path.write_text(f"{TINY}\norder = []\n{calls}\n")
    job = start(load_recipe(path), 5)
    assert sys.modules["recipe"].order == ["model", "optimizer", "batches"]
    drawn = list(job.batches)
    assert len(drawn) == 4 and drawn[0] is job.first
    torch.manual_seed(5)
    again = job.recipe.model()
    assert torch.equal(again[0].weight, job.model[0].weight)


_NAMES = ("model", "optimizer", "batches")


def test_a_failure_in_the_middle_of_the_batches_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(TINY.replace("for _ in range(BATCHES):", "for n in range(BATCHES):\n        print([0, 0][n])"))
    job = start(load_recipe(path), 0)
    with pytest.raises(UsageError, match="IndexError: list index out of range\n  at .*recipe.py:"):
        list(job.batches)


def test_on_the_meta_device_nothing_is_allocated() -> None:
    job = start(load_recipe(RECIPES / "tiny.py"), 0, meta=True)
    assert all(p.is_meta for p in job.model.parameters())
    assert all(part.is_meta for part in job.first)


def test_a_batch_that_needs_values_is_a_real_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(TINY.replace("yield torch.randn(ROWS, WIDTH)", "yield torch.eye(int(torch.ones(1)))"))
    job = start(load_recipe(path), 0, meta=True)
    assert not any(part.is_meta for part in job.first) and next(job.model.parameters()).is_meta


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_of_this_name", "recipe.py:1: import nothing_of_this_name"),
        (f"{TINY}\ndef loss(model, batch):\n    raise KeyError('label')", "raise KeyError('label')"),
        (f"{TINY}\ndef loss(model, batch):\n    return model(batch[0]).mean().item()", ""),
        (f"{TINY}\ndef batches():\n    return []", "yields nothing"),
    ],
)
def test_a_bad_recipe_ends_the_command_with_2_and_no_traceback(
    source: str, told: str, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(source)
    done = called(cache, "train", path, "--json")
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.lstrip().splitlines()[-1].startswith(("  ", "["))


def test_the_traceback_is_there_when_asked_for(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text("def helper():\n    return 1 / 0\n\nhelper()")
    done = gradbase(cache, "train", path, "--traceback")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "in helper" in done.stderr


def started_with(scheduler: str, tmp_path: Path) -> Job:
    path = tmp_path / "recipe.py"
    path.write_text(f"{TINY}\ndef scheduler(o):\n    return torch.optim.lr_scheduler.{scheduler}\n")
    return start(load_recipe(path), 0)


def test_a_scheduler_that_waits_for_a_plateau_is_told_the_loss(tmp_path: Path) -> None:
    job = started_with("ReduceLROnPlateau(o, factor=0.5, patience=0)", tmp_path)
    rates = []
    for loss in (2.0, 1.0, 1.0):
        job.schedule(loss)
        rates.append(job.optimizer.param_groups[0]["lr"])
    assert rates == [1e-2, 1e-2, 5e-3]


def test_a_scheduler_that_fails_is_named(tmp_path: Path) -> None:
    job = started_with("OneCycleLR(o, 0.1, total_steps=2)", tmp_path)
    job.schedule(1.0)
    with pytest.raises(UsageError, match=r"the OneCycleLR of .*recipe.py failed: ValueError: Tried to step 3 times"):
        for _ in range(2):
            job.schedule(1.0)
