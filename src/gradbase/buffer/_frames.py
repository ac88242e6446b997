"""Planned frames for kernels that allocate their results themselves.

Convolutions, norms, attention and recurrent layers have no `out=` form that writes into given memory. The
native allocator (native/frames.cpp) answers their requests with addresses in the arena instead. It is compiled
at first use with the user's compiler, against the headers of the torch that runs; without a compiler there
are no frames, and such results are copied into the arena.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gradbase.buffer._arena import Arena

_log = logging.getLogger("gradbase.buffer")
_T = TypeVar("_T")

FRAMES_MAX = 512  # per kernel, as in frames.cpp
FRAME_ALIGNMENT_BYTES = 64  # what torch's own CPU allocator promises to kernels
_COMPILERS = ("g++", "c++", "clang++")
_COMPILE_LIMIT_S = 300
_INSTALL_PROBLEMS = {
    1: "the CPU allocator that is installed gives no plain deleter",
    2: "another CPU allocator with a higher priority is installed",
}


class Allocation(NamedTuple):
    """One request of a kernel: its number from 0, bytes, address, and whether the kernel itself freed it.

    `born` and `freed` number the events of the recording; `freed` is 0 for what outlives the call.
    """

    index: int
    nbytes: int
    address: int
    freed_inside: bool
    born: int = 0
    freed: int = 0


@dataclass(frozen=True, slots=True)
class AllocationLog:
    """What a call requested from torch's CPU allocator on its own thread, in order.

    `peak_bytes` is the most it held at once; `peak_extra_bytes` the same over what it freed before it
    returned, that is, beside its results. Memory that a library takes from malloc itself is not seen.
    """

    allocations: tuple[Allocation, ...]
    peak_bytes: int
    peak_extra_bytes: int

    def index_of(self, address: int) -> int | None:
        """The number of the request that was answered with `address` and not freed, for a result's data_ptr."""
        for allocation in reversed(self.allocations):
            if allocation.address == address and not allocation.freed_inside:
                return allocation.index
        return None


class _Frame(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("call_index", "address", "nbytes")]


class _Layout(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int64), ("frames", _Frame * FRAMES_MAX)]


class Expectation(ctypes.c_void_p):
    """Requests of the next kernel and their frames, prepared for `Frames.expect`."""

    layout: _Layout


class _Entry(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("address", "nbytes", "born", "freed")]


class Frames:
    """The native allocator of this process; `load_frames` gives the only one.

    Around each kernel, on one thread: `expect(expectation)`, the call, `disarm()`. disarm must also run when
    the kernel raises, or the thread's next allocation could be given a frame. `expect` and `disarm` are the
    native functions themselves (below a microsecond each).
    """

    expect: Callable[[Expectation], None]
    """Arm the next requests of this thread."""
    disarm: Callable[[], int]
    """Disarm this thread; how many of the planned frames were handed out since `expect`."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self._library = library
        self._adopted: dict[int, int] = {}
        library.gb_expect.restype = None
        library.gb_disarm.restype = ctypes.c_int64
        library.gb_record_end.restype = ctypes.c_int64
        for name in ("gb_adopt", "gb_forget", "gb_record_take"):
            getattr(library, name).restype = None
        self.expect = library.gb_expect
        self.disarm = library.gb_disarm

    def adopt(self, arena: Arena) -> None:
        """Let frames of this arena be planned, until it is collected. Twice is fine."""
        address = arena.address
        if address in self._adopted:
            return
        self._adopted[address] = arena.nbytes
        self._library.gb_adopt(ctypes.c_void_p(address), ctypes.c_size_t(arena.nbytes))
        weakref.finalize(arena, self._forget, address)

    def prepare(self, frames: Iterable[tuple[int, int, int]]) -> Expectation:
        """Lay out (request number, address, bytes) triples, ascending by number, for `expect`.

        Addresses lie in an adopted arena, on multiples of 64.
        """
        planned = list(frames)
        numbers = [number for number, _, _ in planned]
        assert numbers == sorted(set(numbers)), "request numbers ascend"
        assert len(numbers) <= FRAMES_MAX, f"a kernel has at most {FRAMES_MAX} planned frames"
        for _, address, nbytes in planned:
            assert address % FRAME_ALIGNMENT_BYTES == 0, "a kernel's result starts on a multiple of 64"
            assert self._owns(address, nbytes), "the frame lies outside every adopted arena"
        return _lay_out(planned)

    def record(self, call: Callable[[], _T]) -> tuple[_T, AllocationLog]:
        """Run `call` and log its requests. Run it once before: a kernel's first call may build caches."""
        library = self._library
        handle = ctypes.c_void_p()
        begun = library.gb_record_begin()
        assert begun, "recordings do not nest"
        try:
            result = call()
        finally:
            count = library.gb_record_end(ctypes.byref(handle))
            entries = (_Entry * count)()
            library.gb_record_take(handle, entries)
        return result, _log_of(entries)

    def _owns(self, address: int, nbytes: int) -> bool:
        adopted = self._adopted.items()
        return any(start <= address and address + nbytes <= start + size for start, size in adopted)

    def _forget(self, address: int) -> None:
        del self._adopted[address]
        self._library.gb_forget(ctypes.c_void_p(address))


_lock = threading.Lock()
_loaded: list[Frames | None] = []


def load_frames() -> Frames | None:
    """The process's frames, compiled and installed on the first call; None, with the reason logged, if not.

    Takes a few seconds the first time on a machine, then milliseconds.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0]


def _load() -> Frames | None:
    try:
        library = _open_library(_source())
    except (OSError, subprocess.SubprocessError, _BuildError) as error:
        _log.warning("no planned frames for kernels without an out= form, their results are copied: %s", error)
        return None
    problem = library.gb_install()
    if problem:
        _log.warning("no planned frames: %s", _INSTALL_PROBLEMS[problem])
        return None
    return Frames(library)


class _BuildError(Exception):
    """Compiling did not work; the message says why."""


def _source() -> str:
    return (resources.files("gradbase.buffer") / "native" / "frames.cpp").read_text()


def _open_library(source: str) -> ctypes.PyDLL:
    path = cache_directory() / f"frames-{_build_key(source)}.so"
    if path.exists():
        try:
            return ctypes.PyDLL(str(path))
        except OSError as error:
            _log.warning("%s does not load (%s), compiling it again", path, error)
    _build(source, path)
    return ctypes.PyDLL(str(path))


def cache_directory() -> Path:
    """Where compiled code is kept: $XDG_CACHE_HOME/gradbase/native, readable by the user only."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "gradbase" / "native"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _build_key(source: str) -> str:
    import torch

    parts = (source, torch.__version__, str(torch.compiled_with_cxx11_abi()), platform.machine(), platform.system())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(source: str, path: Path) -> None:
    """Compile beside the target and rename over it, so that processes that build at once do not meet."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as directory:
        output = Path(directory) / path.name
        first = _compile(compiler, "c++20", source, output)
        if first is not None and (second := _compile(compiler, "c++17", source, output)) is not None:
            raise _BuildError(f"{compiler} failed: {second or first}")
        os.replace(output, path)


def _compiler() -> str:
    for name in (os.environ.get("CXX"), *_COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    raise _BuildError(f"no C++ compiler: neither $CXX nor {', '.join(_COMPILERS)} was found")


def _compile(compiler: str, standard: str, source: str, output: Path) -> str | None:
    """None when it worked, else the compiler's first lines about what is wrong."""
    import torch

    root = Path(torch.__file__).parent
    flags = ["-O2", "-shared", "-fPIC", f"-std={standard}", f"-I{root / 'include'}"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    libraries = [f"-L{root / 'lib'}", "-lc10"]
    command = [compiler, *flags, "-x", "c++", "-", "-o", str(output), *libraries]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S)
    return None if done.returncode == 0 else "\n".join(done.stderr.splitlines()[:5])


def _lay_out(planned: list[tuple[int, int, int]]) -> Expectation:
    layout = _Layout(count=len(planned))
    for frame, (number, address, nbytes) in zip(layout.frames, planned, strict=False):
        frame.call_index, frame.address, frame.nbytes = number, address, nbytes
    expectation = Expectation(ctypes.addressof(layout))
    expectation.layout = layout  # what it points to
    return expectation


def _log_of(entries: Any) -> AllocationLog:
    allocations = tuple(
        Allocation(index, entry.nbytes, entry.address, entry.freed > 0, entry.born, entry.freed)
        for index, entry in enumerate(entries)
    )
    return AllocationLog(
        allocations,
        peak_bytes=_peak_bytes(entries),
        peak_extra_bytes=_peak_bytes([entry for entry in entries if entry.freed]),
    )


def _peak_bytes(entries: Iterable[Any]) -> int:
    """The most bytes alive at once, from the event numbers at which blocks were born and freed."""
    changes: list[tuple[int, int]] = []
    for entry in entries:
        changes.append((entry.born, entry.nbytes))
        if entry.freed:
            changes.append((entry.freed, -entry.nbytes))
    live = peak = 0
    for _, change in sorted(changes):
        live += change
        peak = max(peak, live)
    return peak
