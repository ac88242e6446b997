"""The simulator as machine code: mypyc compiles the machines and the simulator from the very files that run here.

The compiled modules lie beside copies of the others in a folder of the user's cache, named after the contents of
the sources and the versions of all that made them; the package itself stays as it was installed. A hunt with them is
a process of its own that finds that folder first. What it does is the same, event by event.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from gradbase.cluster.simulator import _simulation
from gradbase.common.errors import UsageError

COMPILE_LIMIT_S = 900
_PACKAGE = Path(__file__).parents[2]
_ROOMS = ("common", "store/machine", "cluster/simulator", "cluster/testing")
_COMPILED_ROOMS = ("store/machine", "cluster/simulator")
# Named tuples gain nothing and mypyc refuses some; the others are no part of a run.
_PLAIN = frozenset(("__init__", "__main__", "messages", "notes", "_compiled", "_engine", "_hunt"))
_NAME, _UNFINISHED = "simulator-", ".build-"
_UNUSED_S = 24 * 3600.0
_INSTALL = "pip install mypy setuptools"


def is_compiled() -> bool:
    """Whether this process runs compiled modules."""
    return not str(_simulation.__file__).endswith(".py")


def run_compiled(arguments: Sequence[str], optimize: int = 2) -> int:
    """`python -m gradbase.cluster.simulator ARGUMENTS` with compiled modules; its exit code. Raises UsageError."""
    folder = compiled_folder(optimize)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", "gradbase.cluster.simulator", *arguments]
    return subprocess.run(command, cwd=folder, env=environment).returncode  # -m looks in the folder it runs in first


def compiled_folder(optimize: int = 2) -> Path:
    """The folder with the compiled modules, made if it is not there: within some two minutes. `optimize`: the level
    of the C compiler. Raises UsageError where mypyc or a C compiler is missing, or one of them fails.
    """
    folder = _cache() / f"{_NAME}{_key(optimize)}"
    if not folder.exists():
        _check_tools()
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_UNFINISHED) as made:
            tree = Path(made) / "tree"
            _copy(tree)
            _compile(tree, optimize)
            _keep(tree, folder)
        _prune(folder)
    os.utime(folder)  # it is in use
    return folder


def missing_tools() -> list[str]:
    """What compiling needs and this machine lacks, in words."""
    missing = [f"the Python package {name}" for name in ("mypyc", "setuptools") if not importlib.util.find_spec(name)]
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        missing.append(f"the C compiler {compiler}")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        missing.append(f"Python's own header {header}")
    return missing


def _check_tools() -> None:
    if missing := missing_tools():
        raise UsageError(
            f"--compiled needs {' and '.join(missing)}",
            f"install what is missing ({_INSTALL}; a C compiler and Python's headers come with the system, on Debian: "
            "apt-get install gcc python3-dev), or run without --compiled: it does the same, slower",
        )


def _cache() -> Path:
    """$XDG_CACHE_HOME/gradbase/native, readable by the user only."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root).absolute() / "gradbase" / "native"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _sources(rooms: Sequence[str]) -> list[str]:
    paths = [path for room in rooms for path in sorted((_PACKAGE / room).glob("*.py"))]
    return [str(path.relative_to(_PACKAGE)) for path in paths]


def _key(optimize: int) -> str:
    """Of everything that the compiled modules depend on."""
    digest = hashlib.sha256()
    version = metadata.version("mypy") if importlib.util.find_spec("mypyc") else ""
    for part in (sys.version, str(sysconfig.get_config_var("EXT_SUFFIX")), platform.platform(), version, str(optimize)):
        digest.update(part.encode() + b"\0")
    for source in _sources(_ROOMS):
        digest.update(source.encode() + b"\0" + (_PACKAGE / source).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _copy(tree: Path) -> None:
    """The rooms a run needs, under empty packages: the type checker would follow the others' imports into torch."""
    for source in _sources(_ROOMS):
        target = tree / "gradbase" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_PACKAGE / source, target)
    for package in ("", "store", "cluster"):
        (tree / "gradbase" / package / "__init__.py").touch()


def _compile(tree: Path, optimize: int) -> None:
    modules = [f"gradbase/{source}" for source in _sources(_COMPILED_ROOMS) if Path(source).stem not in _PLAIN]
    command = [sys.executable, "-m", "mypyc", "--strict", "--config-file=", "--follow-imports=silent", *modules]
    settings = {"MYPYC_OPT_LEVEL": str(optimize), "MYPYC_DEBUG_LEVEL": "0", "MYPYPATH": str(tree)}
    environment = {**os.environ, **settings, "MYPY_CACHE_DIR": str(tree / ".mypy_cache")}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=COMPILE_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        problem = f"compiling the simulator took more than {COMPILE_LIMIT_S} s"
        raise UsageError(problem, "run without --compiled") from None
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        said = [line for line in lines if "error" in line.lower()][:3] or lines[-3:]
        raise UsageError(f"mypyc could not compile the simulator: {'; '.join(said)}", "run without --compiled")


def _keep(tree: Path, folder: Path) -> None:
    """Rename it to its place, where another process may have been first."""
    for made in ("build", ".mypy_cache"):
        shutil.rmtree(tree / made, ignore_errors=True)
    try:
        tree.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _prune(folder: Path) -> None:
    """Remove what other versions have left; a day after it was last used, since other installations may share the cache
    and be at work.
    """
    for other in folder.parent.iterdir():
        with contextlib.suppress(OSError):  # somebody else was first
            unused_s = time.time() - other.stat().st_mtime
            if other != folder and other.name.startswith((_NAME, _UNFINISHED)) and unused_s > _UNUSED_S:
                shutil.rmtree(other)
