"""Tables and queries of a real PostgreSQL server."""

from __future__ import annotations

import pytest

from gradbase.common.errors import TableError
from tests.tables.io.test_bad_input import refused
from tests.tables.io.test_inputs import ROWS, as_rows, read

FILL = 'CREATE TABLE answers (task float8, "Worker ID" text, answer text); CREATE VIEW views AS SELECT * FROM answers;'


@pytest.fixture(scope="module")
def address(postgres_address: str) -> str:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(postgres_address) as connection, connection.cursor() as cursor:
        for statement in filter(None, FILL.split(";")):
            cursor.execute(statement)
        cursor.executemany("INSERT INTO answers VALUES ($1, $2, $3)", [(float(i), w, label) for i, w, label in ROWS])
        connection.commit()
    return postgres_address


@pytest.mark.parametrize("table", ["answers", "public.answers", "views"])
def test_a_table_or_view(address: str, table: str) -> None:
    found = read(address, table=table)
    quoted, lines = (2, "ann", 'a "quoted", one'), (3, "çelik", "two\nlines")
    assert as_rows(found) == [quoted, (2, "bob", "cat"), lines, (10, "ann", "dog")]
    assert (found.rows_read, found.rows_missing, found.rows_repeated) == (7, 2, 1)


def test_a_query(address: str) -> None:
    query = 'SELECT task AS item, "Worker ID" AS worker, answer AS label FROM answers WHERE answer = \'dog\';'
    assert as_rows(read(address, query=query)) == [(10, "ann", "dog")]


def test_what_the_server_refuses(address: str) -> None:
    assert "has 2 tables; choose one" in refused(address)
    assert "no table 'answer', did you mean 'answers'?" in refused(address, table="answer")
    assert 'column "nothing" does not exist' in refused(address, query="SELECT nothing FROM answers")


def test_a_server_that_is_not_there_and_no_password_told() -> None:
    pytest.importorskip("adbc_driver_postgresql")
    with pytest.raises(TableError) as caught:
        read("postgresql://me:secret@127.0.0.1:1/db?password=secret", table="t")
    assert "no connection to postgresql://127.0.0.1:1/db" in str(caught.value) and "secret" not in str(caught.value)
