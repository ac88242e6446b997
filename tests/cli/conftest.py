"""One cache for all commands of a session: native code is compiled once, operators are measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tables.conftest import postgres_address

__all__ = ["postgres_address"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
