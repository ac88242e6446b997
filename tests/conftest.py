"""What every test gets: one thread, a cache directory of its own, and reproducible property tests."""

from __future__ import annotations

import os
import signal
import tempfile

import hypothesis
import pytest

# Set before anything imports torch: tests are small, and a machine's cores are shared by those who run them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore interrupts, and every process that they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("gradbase", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gradbase")


@pytest.fixture(autouse=True, scope="session")
def _cache_directory() -> object:
    """Tests, and the processes they start, never touch the user's own catalogue."""
    with tempfile.TemporaryDirectory(prefix="gradbase-tests-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        yield folder
