"""`python docs/rerun.py FILE.md ...`: run the commands that pages show, and put what they print where they say so.

A command stands in a block marked `console`, behind "$ ", its further lines behind "> "; what follows up to the next
one is its output, standard error included. All commands of a page run one after the other, in one folder that is new
and has `examples` in it, with a catalogue of their own. A page whose command ends with another status than the one
said in its block's mark, as in ```console status=2, is left as it was.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```console(?: status=(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LIMIT_S = 900
_SURROUNDINGS = {"COLUMNS": "110", "OMP_NUM_THREADS": "2"}


def commands(block: str) -> Iterator[str]:
    """The commands of a block, as typed."""
    lines: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ ") and lines:
            yield "\n".join(lines)
            lines = []
        if line.startswith("$ ") or (lines and (line + " ").startswith("> ")):
            lines.append(line[2:])
    if lines:
        yield "\n".join(lines)


def shown(command: str, folder: Path, status: int) -> str:
    """A command and what it prints. Raises SystemExit when it ends otherwise than it should."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{_ROOT}/src:{_ROOT}"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder / "work",
        env=environment | _SURROUNDINGS | {"XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
    )
    if done.returncode != status:
        sys.exit(f"status {done.returncode} instead of {status}: {command}\n{done.stdout}")
    typed = "$ " + command.replace("\n", "\n> ")
    return "".join(line.rstrip() + "\n" for line in [*typed.splitlines(), *done.stdout.splitlines()])


def rerun(page: str, folder: Path) -> str:
    """The page with new outputs."""

    def block(found: re.Match[str]) -> str:
        status, mark = int(found[1] or 0), found[0].splitlines()[0]
        return f"{mark}\n{''.join(shown(each, folder, status) for each in commands(found[2]))}```"

    return _BLOCK.sub(block, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="FILE.md")
    for path in parser.parse_args().pages:
        run_page(path)


def run_page(path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("bin", "work"):
            (folder / each).mkdir()
        (folder / "work" / "examples").symlink_to(_ROOT / "examples")
        for program, words in (("gradbase", "-m gradbase"), ("python", "")):
            script = folder / "bin" / program
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            script.chmod(0o755)
        path.write_text(rerun(path.read_text(), folder))


if __name__ == "__main__":
    main()
