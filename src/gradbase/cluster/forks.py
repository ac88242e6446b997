"""A process with torch imported and the model built, that forks workers: one is there in milliseconds.

The caller's own process cannot be forked safely (its thread pools do not survive), and a fresh interpreter needs
seconds to import torch. So one process is started for it, computes on one thread only, and is forked from.

    caller -> fork server    ("prepare", task)                 load the recipe, build the model
                             ("fork", ticket), descriptors     a worker that serves these
    fork server -> caller    ("ready",), ("failed", error), ("forked", ticket, pid)

Servers are forked themselves, one for every job, from one that has torch and nothing of any job. The chain of parents
dies from the top: each process asks the kernel for SIGKILL when its parent ends.

Nothing here needs torch in the caller's process, so that `start_early` can be called before that is imported, and both
processes import it side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket, socketpair
from typing import Any

import gradbase
from gradbase.common.errors import StepError

_PR_SET_PDEATHSIG = 1
_COMMAND = "from gradbase.cluster.forks import main; main()"


class ForkServer:
    """The caller's side of one job's server. `prepare(task)` once, then `fork` as often as a worker is wanted.

    `task` is pickled; it has `warm()`, called in the server, and `serve(fds)`, called in every forked worker.
    """

    def __init__(self) -> None:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        with theirs:
            _Root.get().fork_server(theirs.fileno())
        self.connection = Connection(ours.detach())
        self._tickets = 0

    def hear(self) -> tuple[Any, ...]:
        """The next answer. Raises StepError when the server has ended."""
        try:
            answer: tuple[Any, ...] = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise StepError(
                "the process that starts workers has ended",
                "what it said is on standard error; was it killed for want of memory?",
            ) from None
        return answer

    def prepare(self, task: Any) -> None:
        """Hand the task over; the server answers ("ready",) or ("failed", error) on `connection`."""
        surroundings = (sys.path, os.getcwd(), dict(os.environ))
        self.connection.send_bytes(pickle.dumps(("prepare", (surroundings, pickle.dumps(task)))))

    def fork(self, fds: list[int]) -> int:
        """Ask for a worker that holds copies of these descriptors; its ticket comes back with its process id."""
        self._tickets += 1
        _send_with(self.connection, ("fork", (self._tickets, len(fds))), fds)
        return self._tickets

    def close(self) -> None:
        """End the server, and with it every worker that still lives; return when it has ended."""
        ours = socket(fileno=os.dup(self.connection.fileno()))
        with ours, contextlib.suppress(OSError):
            ours.shutdown(SHUT_WR)
            while ours.recv(1 << 16):
                pass
        self.connection.close()


def start_early() -> None:
    """Have the process that servers are forked from import torch while this one does something else."""
    _Root.get()


class _Root:
    """The one process that this one starts to fork servers from: it has imported torch. It ends with this process."""

    _here: _Root | None = None

    def __init__(self) -> None:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        self._owner = os.getpid()

    @classmethod
    def get(cls) -> _Root:
        """The one that lives, or a new one."""
        here = cls._here
        if here is None or here._owner != os.getpid() or here._process.poll() is not None:
            cls._here = here = cls()
        return here

    def fork_server(self, fd: int) -> None:
        _send_with(self._connection, ("server", None), [fd])


def _send_with(connection: Connection, message: Any, fds: list[int]) -> None:
    """A message, then descriptors."""
    connection.send_bytes(pickle.dumps(message))
    for fd in fds:
        send_handle(connection, fd, 0)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the thread that started it ends; at once if that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _environment() -> dict[str, str]:
    """This process's environment, with everything importable that is importable here."""
    root = str(Path(gradbase.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}


class _Server:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._task: Any = None
        self._children: set[int] = set()

    def run(self) -> Callable[[], None]:
        """Serve until the caller goes away; comes back only in what was forked, with what it has to do."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        for fd in (self._connection.fileno(), reading):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == reading:
                    os.read(reading, 4096)
                    self._reap()
                elif (work := self._serve()) is not None:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(reading)
                    os.close(writing)
                    return work

    def _serve(self) -> Callable[[], None] | None:
        try:
            verb, argument = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        if verb == "prepare":
            self._prepare(*argument)
            return None
        if verb == "server":
            return self._fork_server()
        return self._fork(*argument)

    def _fork_server(self) -> Callable[[], None] | None:
        """In the child: serve one job on a connection of its own."""
        connection = Connection(recv_handle(self._connection))
        root = os.getpid()
        if pid := os.fork():
            self._children.add(pid)
            connection.close()
            return None
        die_with_parent(root)
        self._connection.close()
        return lambda: _serve(connection)

    def _prepare(self, surroundings: tuple[list[str], str, dict[str, str]], pickled: bytes) -> None:
        try:
            sys.path[:], folder, environment = surroundings
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            self._task = pickle.loads(pickled)
            self._task.warm()
        except BaseException as error:
            self._answer("failed", _sendable(error))
        else:
            self._answer("ready")

    def _fork(self, ticket: int, count: int) -> Callable[[], None] | None:
        fds = [recv_handle(self._connection) for _ in range(count)]
        server = os.getpid()
        if pid := os.fork():
            self._children.add(pid)
            for fd in fds:
                os.close(fd)
            self._answer("forked", ticket, pid)
            return None
        die_with_parent(server)
        self._connection.close()
        return lambda: self._task.serve(fds)

    def _reap(self) -> None:
        for pid in list(self._children):
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                self._children.discard(pid)

    def _answer(self, *message: Any) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(message))
        except OSError:
            os._exit(0)


def _sendable(error: BaseException) -> BaseException:
    """The error itself where it survives pickling, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def main() -> None:
    fd, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    import torch

    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # the first optimizer of a process imports a good part of torch: seconds
    import gradbase.cluster.local  # noqa: F401  every task needs it
    _serve(Connection(fd))


def _serve(connection: Connection) -> None:
    """Be a server on this connection; in what it forks, do what is to be done there, and end."""
    work = _Server(connection).run()
    try:
        work()
    finally:
        sys.stderr.flush()
        os._exit(0)  # nothing of the server's is to be torn down here

