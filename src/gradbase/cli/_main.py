"""From arguments to an exit code.

    0    done
    1    a mistake of gradbase itself: the traceback is printed
    2    bad usage or input
    3    the budget cannot be met
    130  interrupted
    141  whoever read standard output went away
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from gradbase.cli._console import Console
from gradbase.cli._parser import CommandLineError, parse
from gradbase.common.errors import GradbaseError, InfeasibleError

DONE, MISTAKE, BAD_INPUT, INFEASIBLE, INTERRUPTED, NO_READER = 0, 1, 2, 3, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (`argv` without the program's name, default: the process's own) and return its exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
    except CommandLineError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except SystemExit as done:  # --help and --version
        return int(done.code or DONE)
    try:
        with Console(json_lines=arguments.json, quiet=arguments.quiet) as console:
            return _run(arguments, console)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return NO_READER


def _run(arguments: argparse.Namespace, console: Console) -> int:
    try:
        command = importlib.import_module(f"gradbase.cli._{arguments.command}")
        return int(command.run(arguments, console))
    except InfeasibleError as error:
        console.fail(str(error))
        console.event("infeasible", least_bytes=error.least_bytes, operator=error.operator)
        return INFEASIBLE
    except GradbaseError as error:
        if arguments.traceback:
            console.fail("".join(traceback.format_exception(error)))
        console.fail(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        console.fail("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception:
        console.fail(f"{traceback.format_exc()}this is a mistake of gradbase; please report it with the lines above")
        return MISTAKE
