"""Compiled, the simulator does the same to the last note; where it cannot be compiled, it says what is missing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradbase.cluster.simulator import _compiled
from gradbase.cluster.simulator.__main__ import main

QUICK = 0  # the level at which the C compiler is done soonest
NOT_OF_THE_RUN = {"cpu_s", "events_per_cpu_s", "runs_per_cpu_s", "code"}

compiles = pytest.mark.skipif(
    bool(_compiled.missing_tools()), reason=f"compiling needs {' and '.join(_compiled.missing_tools())}"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(root))
        yield root


def compiled(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert _compiled.run_compiled(arguments, QUICK) == 0
    return capfd.readouterr().out


def plain(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capfd.readouterr().out


@compiles
@pytest.mark.slow
def test_compiled_runs_have_the_same_outcomes(capfd: pytest.CaptureFixture[str]) -> None:
    """Every seed's: `outcomes_crc32` is of them all."""
    runs = ("--runs", "400", "--seed", "11")
    one, other = json.loads(compiled(capfd, *runs)), json.loads(plain(capfd, *runs))
    assert (one["code"], other["code"]) == ("compiled", "plain")
    assert one["runs"] == 400 and one["outcomes_crc32"] != "00000000"
    assert {key: value for key, value in one.items() if key not in NOT_OF_THE_RUN} == {
        key: value for key, value in other.items() if key not in NOT_OF_THE_RUN
    }


@compiles
@pytest.mark.parametrize("seed", ("3", "5", "8"))
def test_compiled_runs_have_the_same_histories(seed: str, capfd: pytest.CaptureFixture[str]) -> None:
    history = compiled(capfd, "--history", "--seed", seed)
    assert history.count("\n") > 50
    assert history == plain(capfd, "--history", "--seed", seed)


@compiles
def test_nothing_is_left_beside_the_folder(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is compiled once, and nothing is put into the package itself."""
    first, again = _compiled.compiled_folder(QUICK), _compiled.compiled_folder(QUICK)
    assert first == again and [*first.parent.iterdir()] == [first] and first.is_relative_to(cache)
    assert [*first.rglob("_simulation.*.so")] and not [*Path(_compiled.__file__).parent.glob("*.so")]


def test_a_new_version_removes_what_older_ones_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But not what was used today, nor what is not its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_compiled, "_check_tools", lambda: None)
    monkeypatch.setattr(_compiled, "_compile", lambda tree, optimize: None)
    native = tmp_path / "gradbase" / "native"
    for name in ("simulator-old", ".build-old", "simulator-of-today", "kernels-old"):
        (native / name / "gradbase").mkdir(parents=True)
        if name.endswith("-old"):
            os.utime(native / name, (time.time() - 3 * 24 * 3600,) * 2)
    folder = _compiled.compiled_folder(QUICK)
    assert {path.name for path in native.iterdir()} == {folder.name, "simulator-of-today", "kernels-old"}
    os.utime(folder, (0, 0))
    assert _compiled.compiled_folder(QUICK) == folder and time.time() - folder.stat().st_mtime < 3600


def test_the_command_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert main(["--runs", "1", "--compiled"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("[usage] --compiled needs the C compiler no-such-compiler")
    assert "pip install mypy setuptools" in captured.err


def test_the_command_says_what_the_compiler_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A compiler that refuses everything; no half-made folder stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_compiled, "_check_tools", lambda: None)
    monkeypatch.setattr(_compiled, "_COMPILED_ROOMS", ("no/room",))
    assert main(["--runs", "1", "--compiled"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("[usage] mypyc could not compile the simulator")
    assert [*(tmp_path / "gradbase" / "native").iterdir()] == []
