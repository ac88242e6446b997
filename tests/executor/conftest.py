"""One catalogue for all tests of the executor: the disk and each operator are measured once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradbase.catalog import Catalog


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    with Catalog(tmp_path_factory.mktemp("catalog") / "catalog.sqlite") as opened:
        yield opened
