"""What the tests of tables share: a PostgreSQL server, where one is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tables import servers


@pytest.fixture(scope="session")
def postgres_address() -> Iterator[str]:
    """The address of an empty database."""
    folder = servers.binaries()
    if folder is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("adbc_driver_postgresql")
    with servers.postgres(folder) as address:
        yield address
