"""A PostgreSQL server of its own for a test session: in a temporary folder, reached by a socket in it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PLACES = ("/usr/lib/postgresql", "/usr/local/pgsql")
_USERS = ("postgres", "nobody")  # the server refuses to run as root


def binaries() -> Path | None:
    """The folder that holds initdb and postgres, the newest there is."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += [each for place in _PLACES for each in sorted(Path(place).glob("**/bin"), reverse=True)]
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a server; the address of its database, and its end with the context."""
    place = Path(tempfile.mkdtemp(prefix="gb-pg-"))  # short: the path of a socket has at most 107 bytes
    as_user, user = _as_user(place)
    tools = {"cwd": place, "check": True, "capture_output": True}
    try:
        subprocess.run(
            [*as_user, folder / "initdb", "-D", place / "data", "-U", user, "-A", "trust", "--no-sync"], **tools
        )
        settings = f"-c listen_addresses='' -c unix_socket_directories='{place}' -c fsync=off"
        start = [*as_user, folder / "pg_ctl", "-D", place / "data", "-w", "-l", place / "log", "-o", settings, "start"]
        subprocess.run(start, cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield f"postgresql:///postgres?host={place}&user={user}"
    finally:
        stop = [*as_user, folder / "pg_ctl", "-D", place / "data", "-m", "immediate", "stop"]
        subprocess.run(stop, cwd=place, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def _as_user(place: Path) -> tuple[list[str], str]:
    """How to run a program as somebody who is not root, and who that is."""
    if os.geteuid() != 0:
        return [], pwd.getpwuid(os.geteuid()).pw_name
    for name in _USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            os.chown(place, entry.pw_uid, entry.pw_gid)
            return ["setpriv", f"--reuid={name}", f"--regid={entry.pw_gid}", "--clear-groups"], name
    raise RuntimeError("no user but root to run PostgreSQL")
