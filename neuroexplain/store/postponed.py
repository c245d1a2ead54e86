"""PostgreSQL: keys and indices of an empty database come after a large load.

Problem. A row of `peak_tokens` took 11 microseconds: COPY 1, its place in the primary key 3, the check of its
foreign key 7 (docs/decisions.md).

Algorithm. While no run is finished, nobody reads what is loaded. So what empty tables can do without is
dropped, and its definitions are written to a table in the same transaction. After the load one transaction
runs the definitions and drops that table. If the process is killed in between, the table is still there: the
next load goes on without keys and creates them at its end, or the next command that explains does.

Unique keys of tables whose rows may be stored already (`ON CONFLICT`) stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table

IS_POSTPONED = "SELECT to_regclass('postponed_definitions') IS NOT NULL"
CREATE_TABLE = "CREATE TABLE postponed_definitions (place integer, table_name text, definition text)"
# (what drops it, what creates it) for the constraints of some kinds, and for the indices without a constraint
CONSTRAINTS = """
SELECT 'ALTER TABLE ' || conrelid::regclass || ' DROP CONSTRAINT ' || quote_ident(conname),
  'ALTER TABLE ' || conrelid::regclass || ' ADD CONSTRAINT ' || quote_ident(conname)
    || ' ' || pg_get_constraintdef(oid)
FROM pg_constraint WHERE conrelid = to_regclass(%(table)s) AND contype::text = ANY(%(kinds)s)"""
INDICES = """
SELECT 'DROP INDEX ' || indexrelid::regclass, pg_get_indexdef(indexrelid)
FROM pg_index WHERE indrelid = to_regclass(%(table)s) AND NOT indisunique"""
FOREIGN, ALL_KEYS = ["f"], ["f", "p", "u"]


@contextmanager
def indices_after(engine: Engine) -> Iterator[None]:
    """Load many rows: on PostgreSQL, into an empty database, keys and indices are created at the end."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.begin() as connection:
        _postpone(connection)
    yield
    create_postponed(engine)


def create_postponed(engine: Engine) -> None:
    """Create what a load has postponed, if there is such."""
    if engine.dialect.name != "postgresql":
        return
    with engine.begin() as connection:
        if not connection.exec_driver_sql(IS_POSTPONED).scalar_one():
            return
        sql = "SELECT definition, table_name FROM postponed_definitions ORDER BY place"
        rows = connection.exec_driver_sql(sql).all()
        for definition, _ in rows:
            connection.exec_driver_sql(definition)
        for table_name in dict.fromkeys(name for _, name in rows):
            connection.exec_driver_sql(f"ANALYZE {table_name}")
        connection.exec_driver_sql("DROP TABLE postponed_definitions")


def _postpone(connection: Connection) -> None:
    """Drop what empty tables can do without, if no run is finished and nothing is postponed already."""
    from neuroexplain.store import tables as t

    is_used = connection.exec_driver_sql("SELECT EXISTS (SELECT 1 FROM runs WHERE status = 'finished')")
    if is_used.scalar_one() or connection.exec_driver_sql(IS_POSTPONED).scalar_one():
        return
    connection.exec_driver_sql(CREATE_TABLE)
    without_conflicts = (t.units, t.exemplars, t.samples, t.peak_tokens, t.vocabulary_readings)
    place = 0
    for table in t.metadata.sorted_tables:
        if connection.exec_driver_sql(f"SELECT EXISTS (SELECT 1 FROM {table.name})").scalar_one():
            continue
        kinds = ALL_KEYS if table in without_conflicts else FOREIGN
        for drop, create in _definitions(connection, table, kinds):
            connection.exec_driver_sql(drop)
            values = place, table.name, create
            connection.exec_driver_sql("INSERT INTO postponed_definitions VALUES (%s, %s, %s)", values)
            place += 1


def _definitions(connection: Connection, table: Table, kinds: list[str]) -> list[tuple[str, str]]:
    """(what drops it, what creates it) for what may be postponed of a table."""
    values = {"table": table.name, "kinds": kinds}
    rows = (connection.exec_driver_sql(sql, values).all() for sql in (CONSTRAINTS, INDICES))
    return [(row[0], row[1]) for of_kind in rows for row in of_kind]
