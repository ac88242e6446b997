"""One SQLite file that several processes write, and that repairs itself.

How a file comes to be. A catalogue is built whole under another name, closed, and renamed into place, so no
process ever sees half of one; WAL mode is part of it from the start. Building and setting aside happen under
a lock: an exclusive transaction on NAME.lock, an SQLite file that stays empty. SQLite's own locking is the one
file lock that works alike on all systems and is let go when its holder is killed.

How damage is met. Opening checks the application id, the schema version and every table's columns; corrupt
pages show when they are used. Either way the file is renamed to NAME.damaged-N, a warning is logged, a new file
is built and the work is done again, once. The log is moved before the database, because a log that lies beside
a new database would be replayed into it. Two processes that meet the damage together do it once: under the lock,
whoever comes second sees another inode at the path and only reopens.

What is not damage: no permission, a full disk, a lock held too long. These become CatalogError.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gradbase.catalog._tables import APPLICATION_ID, SCHEMA_VERSION, TABLES
from gradbase.common.errors import CatalogError

_LOG = logging.getLogger("gradbase.catalog")
_T = TypeVar("_T")

BUSY_TIMEOUT_S = 30.0
_ELSEWHERE = "put the catalogue elsewhere: --catalog FILE (Catalog(FILE) in Python)"

# SQLite's words for troubles of the environment, matched by text because Python 3.10 does not give the code.
# Whatever else fails in a statement of ours says that the file is not as we made it.
_ENVIRONMENT = (
    "database is locked",
    "database table is locked",
    "readonly database",
    "unable to open database file",
    "disk I/O error",
    "disk is full",
    "access permission denied",
    "interrupted",
    "locking protocol",
    "large file support",
)

_SIDE_FILES = ("-wal", "-shm", "-journal")

# What damage is met as; SQLite's complaint about a spoiled name may itself be no text.
_TROUBLE = (sqlite3.Error, UnicodeDecodeError)

Identity = tuple[int, int]  # device and inode: which file a path names at the moment


class Damage(Exception):
    """The file is not a catalogue as this version writes it; the text says how."""


def is_environment(error: sqlite3.Error) -> bool:
    """Whether the trouble is the machine's (permissions, disk, locks) rather than the file's or the query's."""
    return isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in _ENVIRONMENT)


def unusable(path: Path, why: object) -> CatalogError:
    return CatalogError(f"the catalogue {path} cannot be used: {why}", _ELSEWHERE)


class Database:
    """A connection to one catalogue file; `read` and `write` run a piece of work in a transaction.

    Threads take turns. A process that forks must open its own in the child (SQLite's rule).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.RLock()
        self._closed = False
        self._identity: Identity | None = None
        self._connection: sqlite3.Connection | None = None
        self.read(lambda connection: None)

    def close(self) -> None:
        """Let the file go. Work after it raises CatalogError."""
        with self._turn:
            self._closed = True
            self._disconnect()

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` on one snapshot of the file."""
        return self._repairing(work, "BEGIN")

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` holding the write lock from the start: all of it happens, or nothing."""
        return self._repairing(work, "BEGIN IMMEDIATE")

    def _repairing(self, work: Callable[[sqlite3.Connection], _T], begin: str) -> _T:
        with self._turn:
            try:
                return self._transact(work, begin)
            except (*_TROUBLE, Damage) as error:
                self._set_aside(self._damage_in(error))
            try:
                return self._transact(work, begin)
            except (*_TROUBLE, Damage) as error:
                raise unusable(self.path, f"a new one is damaged too ({self._damage_in(error)})") from error

    def _transact(self, work: Callable[[sqlite3.Connection], _T], begin: str) -> _T:
        connection = self._connected()
        connection.execute(begin)
        try:
            result = work(connection)
            connection.execute("COMMIT")
            return result
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise

    def _connected(self) -> sqlite3.Connection:
        """The connection, renewed when the path names another file by now (set aside by a peer, or deleted)."""
        if self._closed:
            raise unusable(self.path, "it was closed")
        if self._connection is not None and self._identity == _identity(self.path):
            return self._connection
        self._disconnect()
        if _identity(self.path) is None:
            with _exclusive(self.path):
                if _identity(self.path) is None:
                    _create(self.path)
        # Taken before opening: if the path changes hands in between, the next call sees it and reopens.
        self._identity = _identity(self.path)
        self._connection = _open(self.path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _damage_in(self, error: Exception) -> str:
        """What is wrong with the file; raises CatalogError when the trouble is not the file's."""
        if isinstance(error, sqlite3.Error) and is_environment(error):
            raise unusable(self.path, error) from error
        return str(error)

    def _set_aside(self, reason: str) -> None:
        self._disconnect()
        with _exclusive(self.path):
            if self._identity is not None and _identity(self.path) == self._identity:
                kept = _move_aside(self.path)
                _LOG.warning("catalogue %s is damaged (%s); kept as %s, starting a new one", self.path, reason, kept)


def _identity(path: Path) -> Identity | None:
    """Which file the path names, None for no file. Raises CatalogError when it is no regular file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error.strerror) from error
    if not stat.S_ISREG(found.st_mode):
        raise unusable(path, "it is not a file")
    return found.st_dev, found.st_ino


def _open(path: Path) -> sqlite3.Connection:
    """Open an existing file and check that it is ours. Raises Damage, sqlite3.Error or CatalogError."""
    if not os.access(path, os.W_OK):
        raise unusable(path, "it is read-only")
    if os.stat(path).st_size == 0:
        raise Damage("it is empty")
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        _check(connection)
        # A crash of the machine may lose the last measurements, never the file; and no write waits for the disk.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise Damage("it is another program's database")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise Damage(f"its schema has version {version}, expected {SCHEMA_VERSION}")
    for table in TABLES:
        found = tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table.name})"))
        if found != table.column_names:
            raise Damage(f"its table {table.name} has columns {found}")


def _create(path: Path) -> None:
    """Build an empty catalogue beside `path` and rename it into place. The lock is held."""
    fresh = path.with_name(f"{path.name}.new")
    _unlink(fresh, *(path.with_name(f"{path.name}{side}") for side in _SIDE_FILES))
    with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for table in TABLES:
            connection.execute(table.create_sql())
        connection.execute("COMMIT")
    try:
        os.replace(fresh, path)
    except OSError as error:
        raise unusable(path, error.strerror) from error


def _unlink(base: Path, *others: Path) -> None:
    """Remove leftovers: a half-built catalogue of a killed process, and a log whose database is gone."""
    for path in (base, *(base.with_name(f"{base.name}{side}") for side in _SIDE_FILES), *others):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _move_aside(path: Path) -> Path:
    """Rename the file and its side files to the first free NAME.damaged-N, the database last."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for side in (*_SIDE_FILES, ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}{side}").rename(kept.with_name(f"{kept.name}{side}"))
    return kept


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock under which files are made and moved."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(path.with_name(f"{path.name}.lock"), timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from error
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise unusable(path, f"its lock {path}.lock: {error}") from error
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise unusable(path, error) from error
    finally:
        lock.close()
