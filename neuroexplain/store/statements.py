"""Statements that write many rows: by INSERT on SQLite, by binary COPY on PostgreSQL (postgresql_copy.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Table, bindparam, delete, insert

from neuroexplain.store.columns import bound_value
from neuroexplain.store.dialect import insert_statement, upsert
from neuroexplain.store.postgresql_copy import (
    copy_changed_rows,
    copy_deletions,
    copy_new_rows,
    copy_rows_in,
    copy_updates,
)
from neuroexplain.store.rows import chunks

ROWS_AT_ONCE = 5_000  # rows of one call of the driver: bounds memory
ROWS_A_STATEMENT = 10  # halves the time of narrow rows; 50 and 150 gained nothing more (docs/decisions.md)
Row: TypeAlias = tuple[Any, ...]
FieldValues: TypeAlias = Mapping[str, Any]  # by the names of columns


def now() -> str:
    """The time as ISO 8601 in UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def insert_many(connection: Connection, table: Table, rows: Iterable[FieldValues]) -> None:
    """Insert rows that all have the same columns."""
    for batch in chunks(rows, ROWS_AT_ONCE):
        if _takes_copies(connection):
            columns = _columns_of(table, batch[0])
            copy_rows_in(connection, table, columns, _bound_rows(connection, columns, batch))
        else:
            connection.execute(insert(table), batch)


def upsert_many(
    connection: Connection, table: Table, rows: Iterable[FieldValues], key: Sequence[str]
) -> None:
    """Insert rows that all have the same columns; a row whose key is stored gets the new values."""
    for batch in chunks(rows, ROWS_AT_ONCE):
        if _takes_copies(connection):
            columns = _columns_of(table, batch[0])
            last = {tuple(row[name] for name in key): row for row in batch}  # a statement writes a row once
            copy_changed_rows(
                connection, table, columns, _bound_rows(connection, columns, last.values()), key
            )
        else:
            new = upsert(connection.dialect.name, table)
            changed = {name: new.excluded[name] for name in batch[0] if name not in key}
            connection.execute(new.on_conflict_do_update(index_elements=key, set_=changed), batch)


def delete_many(connection: Connection, table: Table, keys: Sequence[FieldValues]) -> None:
    """Delete the rows that have the values of a key, which are never null. All keys have the same columns."""
    if not keys:
        return
    columns = _columns_of(table, keys[0])
    if _takes_copies(connection):
        copy_deletions(connection, table, columns, _bound_rows(connection, columns, keys))
        return
    same = (column == bindparam(f"b_{column.name}") for column in columns)
    values = [{f"b_{name}": value for name, value in key.items()} for key in keys]
    connection.execute(delete(table).where(*same), values)


def update_tuples(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Write rows that are stored under the same id: the values of all columns, of which `id` is the first."""
    if _takes_copies(connection):
        copy_updates(connection, table, rows)
    elif rows:
        changes = ", ".join(f"{column.name} = ?" for column in table.columns if column.name != "id")
        values = [(*others, own_id) for own_id, *others in rows]
        connection.exec_driver_sql(f"UPDATE {table.name} SET {changes} WHERE id = ?", values)


def insert_tuples(
    connection: Connection, table: Table, rows: Iterable[Row], *, skip_existing: bool = False
) -> None:
    """Insert rows through the driver: the values of all columns in order, without an id that counts itself.

    SQLAlchemy's work on every value took over half of the time of a collected layer (docs/decisions.md).
    """
    if _takes_copies(connection):
        columns = [column for column in table.columns if column is not table.autoincrement_column]
        (copy_new_rows if skip_existing else copy_rows_in)(connection, table, columns, rows)
        return
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


def _takes_copies(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def _columns_of(table: Table, row: FieldValues) -> list[Column[Any]]:
    return [table.c[name] for name in row]


def _bound_rows(
    connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[FieldValues]
) -> Iterator[Row]:
    for row in rows:
        yield tuple(bound_value(connection.dialect, column, row[column.name]) for column in columns)
