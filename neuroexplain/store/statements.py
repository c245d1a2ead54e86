"""Statements that write many rows: upserts by SQLAlchemy Core, and plain rows straight to the driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import Connection, Table

from neuroexplain.store.dialect import insert_statement, upsert
from neuroexplain.store.rows import chunks

ROWS_AT_ONCE = 5_000  # rows of one call of the driver: bounds memory
ROWS_A_STATEMENT = 10  # halves the time of narrow rows; 50 and 150 gained nothing more (docs/decisions.md)
Row: TypeAlias = tuple[Any, ...]


def now() -> str:
    """The time as ISO 8601 in UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def insert_many(connection: Connection, statement: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    for batch in chunks(rows, ROWS_AT_ONCE):
        connection.execute(statement, batch)


def upsert_many(
    connection: Connection, table: Any, rows: Sequence[Mapping[str, Any]], key: list[str]
) -> None:
    """Insert at least one row; a row whose key exists gets the new values."""
    statement = upsert(connection.dialect.name, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
    insert_many(connection, statement.on_conflict_do_update(index_elements=key, set_=changed), rows)


def insert_tuples(
    connection: Connection, table: Table, rows: Iterable[Row], *, skip_existing: bool = False
) -> None:
    """Insert rows through the driver: the values of all columns in order, without an id that counts itself.

    SQLAlchemy's work on every value took over half of the time of a collected layer (docs/decisions.md).
    """
    for batch in chunks(rows, ROWS_AT_ONCE):
        n_joined = len(batch) // ROWS_A_STATEMENT * ROWS_A_STATEMENT
        for n_rows, part in ((ROWS_A_STATEMENT, batch[:n_joined]), (1, batch[n_joined:])):
            if part:
                statement = insert_statement(
                    connection.dialect, table, n_rows=n_rows, skip_existing=skip_existing
                )
                values = [
                    tuple(chain.from_iterable(part[i : i + n_rows])) for i in range(0, len(part), n_rows)
                ]
                connection.exec_driver_sql(statement, values)
