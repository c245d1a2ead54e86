"""The differences between SQLite and PostgreSQL: connections, the index of words, and INSERT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.file_systems import is_on_network

if TYPE_CHECKING:
    from sqlalchemy import Dialect, Engine, Table

HAS_TABLE = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = :name",
    "postgresql": "SELECT to_regclass(:name) IS NOT NULL",
}
SQLITE_SEARCH_DDL = (
    "CREATE VIRTUAL TABLE explanations_fts USING fts5(text, content='explanations', content_rowid='id')",
    """CREATE TRIGGER explanations_fts_insert AFTER INSERT ON explanations BEGIN
  INSERT INTO explanations_fts(rowid, text) VALUES (new.id, new.text);
END""",
    """CREATE TRIGGER explanations_fts_delete AFTER DELETE ON explanations BEGIN
  INSERT INTO explanations_fts(explanations_fts, rowid, text) VALUES ('delete', old.id, old.text);
END""",
    """CREATE TRIGGER explanations_fts_update AFTER UPDATE OF text ON explanations BEGIN
  INSERT INTO explanations_fts(explanations_fts, rowid, text) VALUES ('delete', old.id, old.text);
  INSERT INTO explanations_fts(rowid, text) VALUES (new.id, new.text);
END""",
)
POSTGRESQL_SEARCH_DDL = (
    "CREATE INDEX ix_explanations_text_search ON explanations "
    "USING gin (to_tsvector('simple', coalesce(text, '')))",
)
POSTGRESQL_MATCH = "to_tsvector('simple', coalesce(e.text, '')) @@ plainto_tsquery('simple', :words)"
IDS_A_BLOCK = 4_096  # ids of explanations in one row of the table `vectors`; part of the schema
# A new or changed text makes its block of vectors outdated; so does a new one beyond all blocks the last one.
OF_CHANGED_TEXT = f"block = new.id / {IDS_A_BLOCK}"
OF_NEW_TEXT = f"block IN (new.id / {IDS_A_BLOCK}, (SELECT max(block) FROM vectors WHERE run_id = new.run_id))"
OUTDATE = "UPDATE vectors SET is_current = false WHERE run_id = new.run_id AND is_current AND "
SQLITE_VECTORS_DDL = (
    f"""CREATE TRIGGER vectors_explanation_insert AFTER INSERT ON explanations BEGIN
  {OUTDATE}{OF_NEW_TEXT};
END""",
    f"""CREATE TRIGGER vectors_explanation_update AFTER UPDATE OF text ON explanations BEGIN
  {OUTDATE}{OF_CHANGED_TEXT};
END""",
)
POSTGRESQL_VECTORS_DDL = (
    f"""CREATE FUNCTION vectors_outdate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_OP = 'INSERT' THEN
    {OUTDATE}{OF_NEW_TEXT};
  ELSE
    {OUTDATE}{OF_CHANGED_TEXT};
  END IF;
  RETURN NULL;
END $$""",
    "CREATE TRIGGER vectors_explanation_insert AFTER INSERT ON explanations "
    "FOR EACH ROW EXECUTE FUNCTION vectors_outdate()",
    "CREATE TRIGGER vectors_explanation_update AFTER UPDATE OF text ON explanations "
    "FOR EACH ROW EXECUTE FUNCTION vectors_outdate()",
)
# How many of a run's explanations the index of words lacks. PostgreSQL keeps its index complete.
N_NOT_INDEXED = {
    "sqlite": (
        "SELECT count(*) FROM explanations "
        "WHERE run_id = :run AND id NOT IN (SELECT id FROM explanations_fts_docsize)"
    ),
    "postgresql": "SELECT 0 FROM runs WHERE id = :run",
}


def set_up_connections(engine: Engine, *, read_only: bool) -> None:
    """SQLite: use a write-ahead log, check foreign keys, wait 30 s for other writers. PostgreSQL: nothing.

    In a folder of a network file system, where such a log does not work, a journal is used.
    """
    if engine.dialect.name != "sqlite":
        return
    from sqlalchemy import event

    has_log = not is_on_network(Path(engine.url.database or "memory"))

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        if not read_only:
            cursor.execute(f"PRAGMA journal_mode = {'WAL' if has_log else 'DELETE'}")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.execute(f"PRAGMA synchronous = {'NORMAL' if has_log else 'FULL'}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def search_ddl(dialect_name: str) -> tuple[str, ...]:
    """The statements that create the index of the explanations' words."""
    return SQLITE_SEARCH_DDL if dialect_name == "sqlite" else POSTGRESQL_SEARCH_DDL


def vectors_ddl(dialect_name: str) -> tuple[str, ...]:
    """The statements that let a new or changed text make its block of vectors outdated."""
    return SQLITE_VECTORS_DDL if dialect_name == "sqlite" else POSTGRESQL_VECTORS_DDL


def search_words(query: str) -> list[str]:
    """The words of a search: data, never search syntax. Raises NeuroexplainError if there is none."""
    words = re.findall(r"\w+", query)
    if not words:
        raise NeuroexplainError(
            f"There is no word to search for in {query!r}. Give at least one:  neuroexplain query relief"
        )
    return words


def as_search(dialect_name: str, words: Sequence[str]) -> str:
    """The value of :words that stands for all the words."""
    return " ".join(f'"{word}"' if dialect_name == "sqlite" else word for word in words)


def matching_ids(dialect_name: str) -> str:
    """A query for the ids of explanations, of all runs, that hold :words; ` LIMIT :n` may follow."""
    if dialect_name == "sqlite":
        return "SELECT rowid FROM explanations_fts WHERE explanations_fts MATCH :words"
    return f"SELECT id FROM explanations e WHERE {POSTGRESQL_MATCH}"


def explanation_matches(dialect_name: str) -> str:
    """The condition that explanation `e` holds :words, checked row by row: for words that many hold."""
    if dialect_name == "sqlite":
        return "EXISTS (SELECT 1 FROM explanations_fts WHERE rowid = e.id AND explanations_fts MATCH :words)"
    return POSTGRESQL_MATCH


def upsert(dialect_name: str, table: Any) -> Any:
    """The dialect's INSERT that has `on_conflict_do_update`."""
    if dialect_name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def insert_statement(dialect: Dialect, table: Table, *, n_rows: int, skip_existing: bool) -> str:
    """SQLite's INSERT of `n_rows` rows of a table, for the driver: the values of the rows follow each other.

    It has all columns but an id that counts itself. With `skip_existing`, rows whose key exists are left out.
    """
    quote = dialect.identifier_preparer.quote
    names = [quote(column.name) for column in table.columns if column is not table.autoincrement_column]
    marks = ", ".join([f"({', '.join('?' * len(names))})"] * n_rows)
    end = " ON CONFLICT DO NOTHING" if skip_existing else ""
    return f"INSERT INTO {quote(table.name)} ({', '.join(names)}) VALUES {marks}{end}"
