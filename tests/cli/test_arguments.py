"""Arguments, help, and the exit code of everything that goes wrong before a command starts."""

from __future__ import annotations

import sys

import pytest

import gradbase
from gradbase.cli import main

COMMANDS = "explain, train, crowd, fuse, match, catalog, store, doctor"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], f"no command given, expected one of {COMMANDS}"),
        (["trian"], f"'trian' is not one of {COMMANDS}, did you mean 'train'?"),
        (["train"], "RECIPE.py"),
        (["train", "a.py", "--memroy", "40%"], "unknown argument '--memroy', did you mean '--memory'?"),
        (["train", "a.py", "--memroy=40%"], "did you mean '--memory'?"),
        (["train", "a.py", "--mem", "40%"], "unknown argument '--mem'"),
        (["train", "a.py", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["train", "a.py", "--steps", "many"], "'many' is not a whole number of at least 1"),
        (["train", "a.py", "--seed", "x"], "--seed"),
        (["explain", "a.py", "b.py"], "unknown argument 'b.py'"),
    ],
)
def test_one_line_and_exit_code_2(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and told in seen.err
    assert len(seen.err.splitlines()) == 1


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["explain", "--help"], ["catalog", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: gradbase")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradbase {gradbase.__version__}\n"


def test_a_mistake_of_ours_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import gradbase.cli._doctor as doctor

    def broken(*_: object) -> int:
        raise AssertionError("impossible")

    monkeypatch.setattr(doctor, "run", broken)
    assert main(["doctor"]) == 1
    seen = capsys.readouterr()
    assert "Traceback" in seen.err and "mistake of gradbase" in seen.err and seen.out == ""


def test_standard_output_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    assert main(["train", "absent.py"]) == 2
    assert sys.stdout is before
    assert "there is no recipe at absent.py" in capsys.readouterr().err
