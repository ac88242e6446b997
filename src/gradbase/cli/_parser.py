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
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several workers, and a store of parameters that outlives them")
    group.add_argument("--workers", type=_positive, metavar="N", help="processes that compute gradients")
    group.add_argument("--consistency", metavar="LEVEL", help="bsp, ssp:S (S steps apart) or asp (default: bsp)")
    group.add_argument("--durability", choices=_DURABILITIES, help="what survives (default: none, with --store wal)")
    group.add_argument("--store", type=Path, metavar="DIR", help="where the log and checkpoints go")
    group.add_argument("--resume", action="store_true", help="go on where the store in --store stands")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="who runs workers (default: local)")
    group.add_argument("--codec", metavar="CODEC", help=_CODEC_HELP)
    group.add_argument("--address", metavar="ADDRESS", help="of the Ray cluster to join (default: start one here)")


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


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("inspect", "verify", "recover"), help=_STORE_HELP)
    parser.add_argument("directory", type=Path, metavar="DIR", help="what was given to train --store")
    parser.add_argument("--out", type=Path, metavar="FILE", help="recover: the *.safetensors file to write")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="the catalogue to check (default: in your cache)")
    parser.add_argument("--spill", type=Path, metavar="DIR", help="the page file's directory to check")


def _add_operator(parser: argparse.ArgumentParser, seed: str) -> None:
    """What every command over tables takes."""
    parser.add_argument("--out", required=True, metavar="FILE", help="what was found; *.parquet or *.csv")
    parser.add_argument("--gold", metavar="FILE", help="compare with known answers: accuracy, calibration, a vote")
    parser.add_argument("--why-out", metavar="FILE", help="why, as a table: what each claim adds to the log-odds")
    parser.add_argument("--html", metavar="FILE", help="a report as one offline page")
    parser.add_argument("--memory", metavar="AMOUNT", help='budget of training: bytes ("1.5GB") or a share ("40%%")')
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed} (default: 0)")


def _add_claims(parser: argparse.ArgumentParser, kinds: str) -> None:
    """What crowd and fuse take: one table of claims, kept statistics, and a list of what to buy."""
    parser.add_argument("input", metavar="INPUT", help=_INPUT_HELP)
    parser.add_argument("--table", metavar="NAME", help="which table of a database")
    parser.add_argument("--query", metavar="SQL", help="what to read instead; a query on a file calls it `input`")
    parser.add_argument("--columns", metavar="NAMES", help=f"columns, where they are not found: {kinds}")
    parser.add_argument("--next", type=_natural, default=0, metavar="K", help="list the K most worth buying")
    parser.add_argument("--next-out", metavar="FILE", help="write that list; *.parquet or *.csv")
    parser.add_argument("--state-in", metavar="FILE", help="statistics of an earlier run, to add to")
    parser.add_argument("--state-out", metavar="FILE", help="write the statistics, to go on from; *.duckdb")


def _add_crowd(parser: argparse.ArgumentParser) -> None:
    _add_claims(parser, "item=qid,worker=who,label=answer")
    _add_operator(parser, "training")
    parser.add_argument("--kind", default="auto", choices=("auto", "classes", "numbers", "sets"), help="of the labels")
    parser.add_argument("--features", metavar="FILE", help="what is known of items: a table, or a .npy matrix")
    parser.add_argument("--feature-items", metavar="FILE", help="the items of the matrix's rows")
    parser.add_argument("--workers-out", metavar="FILE", help="quality of the workers; *.parquet or *.csv")
    parser.add_argument("--copies-out", metavar="FILE", help="who repeats whose errors; *.parquet or *.csv")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="where statistics are kept (default: your cache)")


def _add_fuse(parser: argparse.ArgumentParser) -> None:
    _add_claims(parser, "object=key,source=site")
    _add_operator(parser, "training and held-out claims")
    parser.add_argument("--hierarchy", metavar="FILE", help="what contains what: id, name, parent; or name, parent")
    parser.add_argument("--kinds", metavar="KINDS", help="how attributes are read: born=date,authors=authors")
    parser.add_argument("--source-features", metavar="FILE", help="numbers known of each source")
    parser.add_argument("--copies", default="gated", choices=("gated", "off", "ungated"), help="copying of sources")
    parser.add_argument("--sources-out", metavar="FILE", help="quality of the sources; *.parquet or *.csv")
    parser.add_argument("--copies-out", metavar="FILE", help="who copies whom; *.parquet or *.csv")
    parser.add_argument("--history-out", metavar="FILE", help="since when and until when a value was true")


def _add_match(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="A", help=_INPUT_HELP)
    parser.add_argument("other", nargs="?", metavar="B", help="a second table (default: find duplicates in A)")
    _add_operator(parser, "training")
    parser.add_argument("--id", metavar="COLUMN", help="the column of ids (default: id, or the row's number from 0)")
    parser.add_argument("--source-column", metavar="COLUMN", help="who a record is from (default: its table)")
    parser.add_argument("--labelled", metavar="FILE", help="pairs to learn from: left, right (ids), label (1 or 0)")
    parser.add_argument("--threshold", type=float, metavar="P", help="least probability of a match (default: chosen)")
    parser.add_argument("--clusters-out", metavar="FILE", help="table, record, cluster; *.parquet or *.csv")
    parser.add_argument("--claims-out", metavar="FILE", help="what records say, as claims for fuse")
    parser.add_argument("--golden-out", metavar="FILE", help="one row a cluster, with a probability and reason a cell")


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


_DURABILITIES = ("none", "checkpoint", "wal")
_DESCRIPTION = "Runs a training step the way a database runs a query: planned, explained and inside a memory budget."
_RECIPE_HELP = "a Python file with model(), batches(), loss(model, batch) and optimizer(model)"
_INPUT_HELP = "a CSV, Parquet, DuckDB or SQLite file, or postgresql://..."
_CODEC_HELP = "of gradients: none, bf16, int8, topk:0.01 or onebit, then NAME=CODEC (default: by the measured link)"
_STORE_HELP = "what is in it; whether every checksum is right; its newest parameters as a plain file"
_COMMANDS: dict[str, tuple[str, Any]] = {
    "explain": ("explain the plan of a step; runs nothing", _add_explain),
    "train": ("train inside a memory budget", _add_train),
    "crowd": ("find what is true in the labels of many workers", _add_crowd),
    "fuse": ("find what is true in the claims of many sources", _add_fuse),
    "match": ("find records about the same thing, and make one of them", _add_match),
    "catalog": ("query the measured statistics with SQL", _add_catalog),
    "store": ("look into a parameter store, check it, get its parameters out", _add_store),
    "doctor": ("check that this machine has what gradbase needs", _add_doctor),
}
