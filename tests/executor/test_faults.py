"""A step that is interrupted, fails or is killed: parameters are whole, or the error says that they are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradbase as gb
from gradbase.buffer import PageFile
from gradbase.catalog import Catalog
from tests.zoo import state_sha256


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(model(batch), batch)


def job() -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.GELU())))
    return model, torch.optim.AdamW(model.parameters()), torch.randn(512, 256)


def tight_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, catalog: Catalog, spill: Path
) -> gb.Step:
    """A plan that pages: half of eager's memory without recomputing."""
    rules = ["early_update", "reorder", "inplace", "page", "spill"]
    return gb.compile(
        model, loss, optimizer, batch, "50%", catalog=catalog, spill=spill, rules=rules, planning_effort_s=1
    )


def test_an_interrupt_is_raised_between_steps(catalog: Catalog, tmp_path: Path) -> None:
    model, optimizer, batch = job()
    step = tight_step(model, optimizer, batch, catalog, tmp_path)
    done = 0
    alarm = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            step(batch)
            done += 1
    twin, its_optimizer, _ = job()
    hashes = [state_sha256(twin)]
    for _ in range(done + 1):
        loss(twin, batch).backward()
        its_optimizer.step()
        its_optimizer.zero_grad()
        hashes.append(state_sha256(twin))
    assert state_sha256(model) in hashes[done:], "the interrupted step is whole, or was not begun"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    step(batch)  # and training goes on


@pytest.mark.parametrize("direction", ["write", "read"])
def test_a_failing_disk_is_named_with_the_state_of_the_parameters(
    direction: str, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = getattr(PageFile, direction)
    broken = threading.Event()

    def move(self: PageFile, offset: int, memory: memoryview) -> None:
        if broken.is_set():
            raise gb.PageError("the disk does not answer", "look at the system's log")
        works(self, offset, memory)

    monkeypatch.setattr(PageFile, direction, move)
    model, optimizer, batch = job()
    step = tight_step(model, optimizer, batch, catalog, tmp_path)
    step(batch)
    before = state_sha256(model)
    broken.set()
    with pytest.raises(gb.StepError) as failed:
        step(batch)
    assert "the disk does not answer" in str(failed.value)
    if "no parameter was changed" in str(failed.value):
        assert state_sha256(model) == before
    else:
        assert "parameters are between two steps" in str(failed.value)


def test_a_full_disk_is_found_before_the_first_step(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, batch = job()
    step = tight_step(model, optimizer, batch, catalog, tmp_path)
    before = state_sha256(model)

    def full(*_: object) -> None:
        raise gb.PageError("no room for the page file", "free 1 GiB")

    monkeypatch.setattr("gradbase.executor._engine.PageFile", full)
    with pytest.raises(gb.PageError, match="no room"):
        step(batch)
    assert state_sha256(model) == before


_ENDLESS = """
import sys
import torch
import gradbase as gb
sys.path.insert(0, {root!r})
from tests.executor.test_faults import job, tight_step
from gradbase.catalog import Catalog
from pathlib import Path
model, optimizer, batch = job()
step = tight_step(model, optimizer, batch, Catalog({catalog!r}), Path({spill!r}))
while True:
    step(batch)
    print("step", flush=True)
"""


def test_page_files_vanish_with_a_killed_process(catalog: Catalog, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    program = _ENDLESS.format(root=root, catalog=str(tmp_path / "catalog.sqlite"), spill=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "step\n"
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("catalog.sqlite")]
