"""Copy a run's rows from one database to another as they are, whatever columns the tables have.

Values pass from driver to driver: nothing is decoded, so a new column needs no change here. The two
databases may be of different kinds: only truth values and JSON differ between drivers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import JSON, Boolean, Column, Connection, Table, insert, text, update

from neuroexplain.runs import Run
from neuroexplain.store import tables as t
from neuroexplain.store.engine import Store
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import decode_json
from neuroexplain.store.statements import ROWS_AT_ONCE, insert_tuples, update_tuples

RowMap: TypeAlias = Mapping[str, Any]  # a row by the names of its columns
# What explaining and scoring wrote; all other tables of a run are the collection's.
EXPLAINED = (
    t.explanations,
    *t.PREDICTIONS.values(),
    *t.SCORES.values(),
    t.sessions,
    t.simulator_checks,
    t.vectors,
)
COLLECTED = tuple(
    table for table in t.metadata.sorted_tables if "run_id" in table.c and table not in (*EXPLAINED, t.leases)
)
SEGMENTS_AT_ONCE = 20_000


def copy_collection(source: Store, run: Run, into: Store) -> Iterator[tuple[int, int]]:
    """Copy a run with its records into a new run of `into`, without explanations.

    Yields (tables copied, tables) after each table. The new run is `running` until all of it is there.
    """
    with into.write() as connection:
        run_id = insert_run(connection, source, run, status="running")
    for done, table in enumerate(COLLECTED, 1):
        for rows in _read_table(source, run.id, table):
            with into.write() as connection:
                insert_rows(connection, table, ({**row, "run_id": run_id} for row in rows))
        yield done, len(COLLECTED)
    with into.write() as connection:
        connection.execute(update(t.runs).where(t.runs.c.id == run_id).values(status="finished"))


def insert_run(connection: Connection, source: Store, run: Run, **other: Any) -> int:
    """Insert a run's own row with other values for some columns, and return its id there."""
    with source.read() as reader:
        row = as_maps(reader, "SELECT * FROM runs WHERE id = :id", id=run.id)[0]
    values = {name: _python_value(t.runs.c[name], value) for name, value in row.items() if name != "id"}
    new = insert(t.runs).values(**values | other).returning(t.runs.c.id)
    return int(connection.execute(new).scalar_one())


def holds_records(store: Store, run_id: int) -> bool:
    """Whether a database holds the units of a run, and not only explanations of them."""
    with store.read() as reader:
        return bool(reader.rows("SELECT unit FROM units WHERE run_id = :run LIMIT 1", run=run_id))


def insert_rows(
    connection: Connection, table: Table, rows: Iterable[RowMap], *, skip_existing: bool = False
) -> None:
    """Insert rows read from such a table; an id that counts itself is given anew."""
    columns = [column for column in table.columns if column is not table.autoincrement_column]
    values = (tuple(driver_value(column, row[column.name]) for column in columns) for row in rows)
    insert_tuples(connection, table, values, skip_existing=skip_existing)


def insert_with_ids(connection: Connection, table: Table, rows: Sequence[RowMap]) -> None:
    """Insert rows with their own ids into a file; a row whose id or key exists is left as it is."""
    if rows:
        names = [column.name for column in table.columns]
        sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(':' + n for n in names)})"
        values = [
            {column.name: driver_value(column, row[column.name]) for column in table.columns} for row in rows
        ]
        connection.execute(text(f"{sql} ON CONFLICT DO NOTHING"), values)


def update_rows(connection: Connection, table: Table, rows: Sequence[RowMap]) -> None:
    """Write all columns of rows that are stored under the same id."""
    values = [tuple(driver_value(column, row[column.name]) for column in table.columns) for row in rows]
    update_tuples(connection, table, values)


def driver_value(column: Column[Any], value: Any) -> Any:
    """A value that a driver read, as every driver takes it for this column."""
    if value is None:
        return None
    if isinstance(column.type, JSON) and not isinstance(value, str):
        return json.dumps(value)
    return bool(value) if isinstance(column.type, Boolean) else value


def _python_value(column: Column[Any], value: Any) -> Any:
    """A value that a driver read, as SQLAlchemy gives it."""
    if value is None:
        return None
    if isinstance(column.type, JSON):
        return decode_json(value)
    return bool(value) if isinstance(column.type, Boolean) else value


def _read_table(source: Store, run_id: int, table: Table) -> Iterator[list[dict[str, Any]]]:
    """The run's rows, in parts that fit into memory."""
    for where in _parts_of(source, run_id, table):
        with source.read() as reader:
            rows = as_maps(reader, f"SELECT * FROM {table.name} WHERE run_id = :run{where}", run=run_id)
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            yield rows[begin : begin + ROWS_AT_ONCE]


def as_maps(reader: Reader, sql: str, **values: Any) -> list[dict[str, Any]]:
    """All rows of a query by the names of their columns."""
    return [row._asdict() for row in reader.rows(sql, **values)]


def _parts_of(source: Store, run_id: int, table: Table) -> list[str]:
    """Conditions that divide a table: by layers, or by numbers of segments."""
    key = next((name for name in ("layer", "segment") if name in table.c), None)
    if key is None:
        return [""]
    with source.read() as reader:
        sql = f"SELECT min({key}) AS first, max({key}) AS last FROM {table.name} WHERE run_id = :run"
        ends = reader.row(sql, run=run_id)
    if ends is None or ends.first is None:
        return []
    step = 1 if key == "layer" else SEGMENTS_AT_ONCE
    firsts = range(ends.first, ends.last + 1, step)
    return [f" AND {key} >= {first} AND {key} < {first + step}" for first in firsts]
