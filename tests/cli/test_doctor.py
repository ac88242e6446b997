"""`gradbase doctor`: one line a check, a remedy where one is needed, exit code 0 unless something failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradbase.cli import _doctor, main
from tests.cli.commands import called, events

CHECKS = ["python", "torch", "cpu", "cuda", "cores", "memory", "compiler", "page file", "catalogue", "transformers"]


def test_a_machine_that_can_run_the_tests_is_well(cache: Path) -> None:
    done = called(cache, "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = events(done.stdout)
    assert list(dict.fromkeys(check["name"] for check in checks)) == CHECKS
    assert all(check["found"] and bool(check["remedy"]) == (check["status"] != "ok") for check in checks)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def _found(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json", *arguments])
    checks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {check["name"]: check for check in checks}


def test_what_is_missing_fails_or_warns(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_doctor, "_TORCH_LEAST", (99, 0))
    monkeypatch.setattr("gradbase.buffer.load_frames", lambda: None)
    monkeypatch.setattr(_doctor, "_memory_bytes", lambda: (1 << 34, 1 << 20))
    code, found = _found(capsys, "--spill", str(alone / "absent"))
    assert code == 2
    assert found["torch"]["status"] == "fail" and "99.0" in found["torch"]["remedy"]
    assert found["compiler"]["status"] == "warn" and "C++ compiler" in found["compiler"]["remedy"]
    assert found["memory"]["status"] == "warn" and "1.00 MiB can be had" in found["memory"]["found"]
    assert found["page file"]["status"] == "warn" and "--spill" in found["page file"]["remedy"]


def test_a_catalogue_that_was_damaged(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = alone / "cache" / "gradbase"
    folder.mkdir(parents=True)
    (folder / "catalog.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    code, found = _found(capsys)
    assert code == 0
    assert found["catalogue"]["status"] == "warn" and "damaged" in found["catalogue"]["remedy"]


def test_for_people(alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_doctor, "_looks", lambda arguments: [_doctor._python, _doctor._memory])
    monkeypatch.setattr(_doctor, "_memory_bytes", lambda: (1 << 34, 1 << 20))
    assert main(["doctor"]) == 0
    first, second, remedy = capsys.readouterr().out.splitlines()
    assert first.startswith("ok    python") and second.startswith("warn  memory") and "->" in remedy
