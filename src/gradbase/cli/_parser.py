"""The arguments of every command. Errors are one line and say what was perhaps meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gradbase import __version__

_INVALID_CHOICE = re.compile(r"invalid choice: '?([^' ]*)'? \(choose from (.*?)\)")


class CommandLineError(Exception):
    """The arguments make no sense; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        found = _INVALID_CHOICE.search(message)
        if found:
            choices = re.findall(r"[\w-]+", found.group(2))
            meant = _did_you_mean(found.group(1), choices)
            message = f"{found.group(1)!r} is not one of {', '.join(choices)}{meant}"
        raise CommandLineError(f"{self.prog}: {message} (see {self.prog} --help)")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of one command. Raises CommandLineError; SystemExit for --help and --version."""
    parser, commands = _build()
    arguments, strangers = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.error(f"no command given, expected one of {', '.join(commands)}")
    if strangers:
        command = commands[arguments.command]
        options = [option for action in command._actions for option in action.option_strings]
        command.error(f"unknown argument {strangers[0]!r}{_did_you_mean(strangers[0].split('=')[0], options)}")
    return arguments


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _build() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(prog="gradbase", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gradbase {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (summary, add_arguments) in _COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="JSON on standard output, one object a line")
        command.add_argument("--quiet", action="store_true", help="nothing on standard error but errors")
        command.add_argument("--traceback", action="store_true", help="with an error, where in the code it came up")
        add_arguments(command)
    return parser, dict(subparsers.choices)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """What every command that plans a step takes."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.py", help=_RECIPE_HELP)
    parser.add_argument("--memory", metavar="AMOUNT", help='budget: bytes ("1.5GB") or a share of eager\'s ("40%%")')
    parser.add_argument("--seed", type=int, default=0, help="torch.manual_seed before anything else (default: 0)")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="where statistics are kept (default: your cache)")
    parser.add_argument("--rules", metavar="NAMES", help="only these planner rules, separated by commas")
    parser.add_argument("--no-rule", action="append", default=[], metavar="NAME", help="without this planner rule")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the plan, explained, as one offline page")
    parser.add_argument("--perfetto", type=Path, metavar="FILE", help="write the plan as a trace for ui.perfetto.dev")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--steps", type=_positive, metavar="N", help="batches to train on (default: all of them)")
    parser.add_argument("--spill", type=Path, metavar="DIR", help="directory of the page file, on a local disk")
    parser.add_argument("--compare-eager", action="store_true", help="also run eager PyTorch, in its own process")
    parser.add_argument("--analyze", action="store_true", help="print the plan at the end, measured beside estimated")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the state dict; *.safetensors or torch.save")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--device", metavar="NAME", help="plan for hardware that is not here: h100, a100, ...")
    parser.add_argument("--meta", action="store_true", help="build the model on the meta device: allocate nothing")
    parser.add_argument("--curve", action="store_true", help="memory against predicted time, least to unlimited")
    parser.add_argument("--points", type=_positive, metavar="N", help="points of the curve (default: 12)")
    parser.add_argument("--source", action="store_true", help="show your source lines")
    parser.add_argument("--depth", type=_natural, default=3, metavar="N", help="levels of modules shown (default: 3)")
    parser.add_argument("--analyze", action="store_true", help="run a few steps and show measured beside estimated")


def _add_catalog(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sql", nargs="?", metavar="SQL", help="one SELECT (default: list tables and columns)")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="the catalogue to read (default: in your cache)")
    parser.add_argument("--csv", action="store_true", help="CSV instead of a table")
    parser.add_argument("--path", action="store_true", help="print where the catalogue is")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="the catalogue to check (default: in your cache)")
    parser.add_argument("--spill", type=Path, metavar="DIR", help="the page file's directory to check")


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number


_DESCRIPTION = "Runs a training step the way a database runs a query: planned, explained and inside a memory budget."
_RECIPE_HELP = "a Python file with model(), batches(), loss(model, batch) and optimizer(model)"
_COMMANDS: dict[str, tuple[str, Any]] = {
    "explain": ("explain the plan of a step; runs nothing", _add_explain),
    "train": ("train inside a memory budget", _add_train),
    "catalog": ("query the measured statistics with SQL", _add_catalog),
    "doctor": ("check that this machine has what gradbase needs", _add_doctor),
}
