"""PostgreSQL: many rows go in by binary COPY (docs/benchmarks.md has the rates).

COPY knows no keys. Rows that may be stored already are copied into a temporary table with the same columns,
and one statement takes them from there. The temporary table stays with its connection, empty between
transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import JSON, BigInteger, Boolean, Column, Connection, Float, Integer, LargeBinary, Table

from neuroexplain.store.columns import PackedArray

Columns: TypeAlias = Sequence[Column[Any]]
Rows: TypeAlias = Iterable[Sequence[Any]]  # the values of the columns in order, as a driver takes them
# Of the kinds of a column the first that fits. JSON travels as text, like all else.
POSTGRESQL_TYPES = (
    (JSON, "text"),
    (Boolean, "bool"),
    (BigInteger, "int8"),
    (Integer, "int4"),
    (Float, "float8"),
    ((LargeBinary, PackedArray), "bytea"),
)


def copy_rows_in(connection: Connection, table: Table, columns: Columns, rows: Rows) -> None:
    """Insert rows whose keys are new."""
    _copy(connection, table.name, columns, rows)


def copy_new_rows(connection: Connection, table: Table, columns: Columns, rows: Rows) -> None:
    """Insert those rows whose keys are new."""
    _copy_beside(connection, table, columns, rows, f"{_INSERT} ON CONFLICT DO NOTHING")


def copy_changed_rows(
    connection: Connection, table: Table, columns: Columns, rows: Rows, key: Sequence[str]
) -> None:
    """Insert rows; a row whose key is stored gets the new values. No two rows may have the same key."""
    others = (column for column in columns if column.name not in key)
    changes = ", ".join(f"{name} = excluded.{name}" for name in _names(others))
    on_conflict = f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    _copy_beside(connection, table, columns, rows, f"{_INSERT} {on_conflict}")


def copy_updates(connection: Connection, table: Table, rows: Rows) -> None:
    """Write all columns of rows that are stored under the same id."""
    names = _names(column for column in table.columns if column.name != "id")
    changes = ", ".join(f"{name} = {{copied}}.{name}" for name in names)
    statement = f"UPDATE {{table}} SET {changes} FROM {{copied}} WHERE {{table}}.id = {{copied}}.id"
    _copy_beside(connection, table, list(table.columns), rows, statement)


def copy_deletions(connection: Connection, table: Table, columns: Columns, keys: Rows) -> None:
    """Delete the rows whose values of the columns are among the keys."""
    same = " AND ".join(f"{{table}}.{name} = {{copied}}.{name}" for name in _names(columns))
    _copy_beside(connection, table, columns, keys, f"DELETE FROM {{table}} USING {{copied}} WHERE {same}")


_INSERT = "INSERT INTO {table} ({columns}) SELECT {columns} FROM {copied}"


def _copy_beside(connection: Connection, table: Table, columns: Columns, rows: Rows, statement: str) -> None:
    """Copy rows into the temporary table and run the statement. It names {table}, {copied} and {columns}."""
    names = {"table": table.name, "copied": f"copied_{table.name}", "columns": ", ".join(_names(columns))}
    create = (
        "CREATE TEMPORARY TABLE IF NOT EXISTS {copied} ON COMMIT DELETE ROWS AS TABLE {table} WITH NO DATA"
    )
    connection.exec_driver_sql(create.format(**names))
    _copy(connection, names["copied"], columns, rows)
    connection.exec_driver_sql(statement.format(**names))
    connection.exec_driver_sql(f"DELETE FROM {names['copied']}")  # for the next time in this transaction


def _copy(connection: Connection, target: str, columns: Columns, rows: Rows) -> None:
    cursor: Any = connection.connection.cursor()
    sql = f"COPY {target} ({', '.join(_names(columns))}) FROM STDIN (FORMAT BINARY)"
    with cursor, cursor.copy(sql) as copy:
        copy.set_types([_type_of(column) for column in columns])
        for row in rows:
            copy.write_row(row)


def _type_of(column: Column[Any]) -> str:
    return next((name for kind, name in POSTGRESQL_TYPES if isinstance(column.type, kind)), "text")


def _names(columns: Iterable[Column[Any]]) -> list[str]:
    return [f'"{column.name}"' for column in columns]
