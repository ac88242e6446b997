"""Lossy codecs on the local engine: the bits of one process that does the same, whoever is killed and whenever."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from gradbase.cluster.codecs import parse_codecs
from gradbase.cluster.job import CodecChoice, Request
from gradbase.cluster.local import LocalEngine
from gradbase.cluster.steward import StepReport
from gradbase.cluster.testing import Result, batches_used
from gradbase.common.errors import UsageError
from gradbase.store.files import DiskFiles
from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.machine.history import check
from gradbase.store.machine.notes import Note
from gradbase.store.recovery import verify_store
from gradbase.store.update import rule_of
from tests.cluster import recipes
from tests.cluster.killing import killed_and_resumed

EVERY = "int8,*=int8"  # the recipe's tensors are so small that none would go through a codec that does not name it


@pytest.mark.parametrize("codec", ["topk:0.1:6", "onebit:5", "topk:0.1:6:gradients"])
def test_every_codec_gives_the_bits_of_one_process_with_error_feedback(codec: str) -> None:
    choices: list[CodecChoice] = []
    request = Request(recipes.build, 2, 12, codec=f"{codec},*={codec}")
    outcome = LocalEngine(request, on_codec=choices.append).run()
    assert recipes.digest(outcome.model) == recipes.plain(2, 12, codec) != recipes.plain(2, 12)
    of = "" if codec.endswith("gradients") else "; of Adam's directions, which workers find, for 6 tensors"
    reason = f"as asked for{of}"
    assert choices == [CodecChoice(f"{codec},*={codec}", reason)] and outcome.codec == choices[0].codec
    assert outcome.traffic == (0, 0, 0)


@pytest.mark.parametrize(
    ("given", "small"),
    [("topk:0.01", "int8"), ("onebit", "int8"), ("int8", None), ("none", None), ("topk:0.01,0.*=none", None)],
)
def test_small_tensors_are_rounded_only_beside_what_leaves_most_out(given: str, small: str | None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.BatchNorm1d(64))
    rule = rule_of(torch.optim.AdamW(model.parameters()), model)
    layout = lay_out(specs_of_model(model), 1)
    chosen = parse_codecs(given).of_pages(layout, parse_codecs(given).directing(layout, rule))
    names = {layout.tensors[page.tensor].name: str(chosen.get(page.number)) for page in layout.pages}
    assert names["0.bias"] == str(small) and names["1.running_mean"] == "None"
    assert names["0.weight"] == ("None" if "none" in given else given)


def test_over_shared_memory_nothing_is_encoded_unless_it_is_asked_for() -> None:
    choices: list[CodecChoice] = []
    outcome = LocalEngine(Request(recipes.build, 2, 4), on_codec=choices.append).run()
    assert outcome.codec == "none" and choices == []
    assert recipes.digest(outcome.model) == recipes.plain(2, 4)


@pytest.mark.parametrize("durability", ["none", "checkpoint", "wal"])
def test_a_worker_that_takes_residuals_with_it_makes_the_job_go_back(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradbase.cluster.storage._MTBF_US", 1e3)  # a checkpoint as often as one can be taken
    reports: list[StepReport] = []
    warnings: list[str] = []

    def kill(report: StepReport) -> None:
        reports.append(report)
        if len(reports) in (50, 80):
            others = [pid for pid in engine.processes() if pid != os.getpid()]
            os.kill(others[0], signal.SIGKILL)

    store = None if durability == "none" else tmp_path / "store"
    request = Request(recipes.build, 2, 40, durability=durability, store=store, codec=EVERY)  # type: ignore[arg-type]
    engine = LocalEngine(request, on_report=kill, on_warning=warnings.append)
    outcome = engine.run()
    assert outcome.lost == len(warnings) == 2 and all("what the codec had left out" in each for each in warnings)
    assert recipes.digest(outcome.model) == recipes.plain(2, 40, "int8")
    went_back = [b.step for a, b in zip(reports, reports[1:], strict=False) if b.step < a.step]
    assert store is not None or went_back == [1, 1]  # how far back depends on when the last checkpoint was done


@pytest.mark.parametrize("codec", ["int8", "topk:0.1:6"])
def test_a_store_keeps_residuals_and_its_codec(tmp_path: Path, codec: str) -> None:
    store, every = tmp_path / "store", f"{codec},*={codec}"
    given = {"durability": "wal", "store": store}
    first = LocalEngine(Request(recipes.build, 2, 7, codec=every, **given)).run()  # type: ignore[arg-type]
    assert recipes.digest(first.model) == recipes.plain(2, 7, codec)
    assert list(store.glob("checkpoints/*/residuals.safetensors"))
    assert not [each for each in verify_store(DiskFiles(store)) if each.damage]
    again = LocalEngine(Request(recipes.build, 2, 15, resume=True, **given)).run()  # type: ignore[arg-type]
    assert again.codec == every and recipes.digest(again.model) == recipes.plain(2, 15, codec)
    with pytest.raises(UsageError, match=f"made with codec {codec}"):
        LocalEngine(Request(recipes.build, 2, 20, resume=True, codec="bf16", **given)).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logging", "codec", "kills"), [("command", "topk:0.1:20", (70,)), ("physical", "none", (50, 30))]
)
def test_the_driver_is_killed_and_the_same_bits_come_out(
    tmp_path: Path, logging: str, codec: str, kills: tuple[int, ...]
) -> None:
    """Killed again, the log begins behind the older of two checkpoints."""
    given = f"{codec},*={codec}"
    digest, firsts = killed_and_resumed("local", tmp_path / "store", 60, kills, logging, given)
    assert digest == recipes.plain(2, 60, codec)
    assert firsts[0] == 1 and firsts == sorted(firsts)


@pytest.mark.parametrize(("consistency", "codec"), [("ssp:1", "int8"), ("asp", "topk:0.1:20")])
def test_stale_gradients_in_a_log_are_those_that_were_applied(tmp_path: Path, consistency: str, codec: str) -> None:
    """One worker takes the batches in their order, so the bits are known. One that is new has left nothing out yet."""
    extra = {"CONSISTENCY": consistency, "WORKERS": "1"}
    given = f"{codec},*={codec}"
    digest, firsts = killed_and_resumed("local", tmp_path / "store", 50, (15,), "physical", given, extra)
    assert firsts[0] == 1 and firsts == sorted(firsts)
    assert digest == recipes.plain(1, 50, codec, forgets=[first - 1 for first in firsts])
    assert not [each for each in verify_store(DiskFiles(tmp_path / "store")) if each.damage]


@pytest.mark.parametrize(("consistency", "codec"), [("ssp", "onebit:0"), ("asp", "topk:0.1")])
def test_stale_gradients_through_codecs_are_used_once_each(tmp_path: Path, consistency: Any, codec: str) -> None:
    """Though a worker is killed; then the whole job is stopped, and goes on."""
    history: list[Note] = []

    def kill(report: StepReport) -> None:
        others = [pid for pid in engine.processes() if pid != os.getpid()]
        if report.batch == 9 and others:
            os.kill(others[0], signal.SIGKILL)

    for steps, resume in ((15, False), (25, True)):
        staleness_steps = 2 if consistency == "ssp" else 0
        given: dict[str, Any] = {"durability": "wal", "store": tmp_path / "store", "resume": resume}
        request = Request(
            recipes.build, 2, steps, consistency, staleness_steps, codec=f"{codec},*={codec}", **given
        )
        engine = LocalEngine(request, on_report=kill, note=history.append)
        outcome = engine.run()
        assert outcome.steps == steps and outcome.lost <= 1 - resume
    job = request.job(25, recipes.SEED)
    assert check(job, history) == []
    for shard in range(job.shards):
        used = batches_used(job, Result("", 0, history), shard)
        assert used == dict.fromkeys(range(job.batches), 1)


def test_a_physical_log_cannot_bring_residuals_back(tmp_path: Path) -> None:
    request = Request(recipes.build, 1, 4, durability="wal", store=tmp_path / "s", logging="physical", codec=EVERY)
    with pytest.raises(UsageError, match="cannot be physical"):
        LocalEngine(request).run()
    assert not (tmp_path / "s").exists()
