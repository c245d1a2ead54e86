"""Statements that write many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, Table

from neuroexplain.store.dialect import insert_statement, upsert
from neuroexplain.store.engine import Store

ROWS_AT_ONCE = 5_000
ROWS_A_STATEMENT = 10
Row: TypeAlias = tuple[Any, ...]
T = TypeVar("T")


def now() -> str:
    """The time as ISO 8601 in UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def insert_many(connection: Connection, statement: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    for batch in batches(rows):
        connection.execute(statement, batch)


def insert_tuples(
    connection: Connection, table: Table, rows: Iterable[Row], *, unless_there: bool = False
) -> None:
    """Rows of all columns in their order (without a counted id), as the driver takes them.

    Past SQLAlchemy's work on every value, which took over half of the time of a layer; many rows a statement, which halves
    the time of narrow ones.
    """
    for batch in batches(rows):
        whole = len(batch) // ROWS_A_STATEMENT * ROWS_A_STATEMENT
        for n, some in ((ROWS_A_STATEMENT, batch[:whole]), (1, batch[whole:])):
            if some:
                statement = insert_statement(connection.dialect, table, n_rows=n, unless_there=unless_there)
                joined = [tuple(chain.from_iterable(some[at : at + n])) for at in range(0, len(some), n)]
                connection.exec_driver_sql(statement, joined)


def upsert_many(
    connection: Connection, store: Store, table: Any, rows: Sequence[Mapping[str, Any]], key: list[str]
) -> None:
    statement = upsert(store.dialect, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
    insert_many(connection, statement.on_conflict_do_update(index_elements=key, set_=changed), rows)


def batches(rows: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, ROWS_AT_ONCE)):
        yield batch
