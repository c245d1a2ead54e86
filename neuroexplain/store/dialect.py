"""All that differs between SQLite and PostgreSQL: how a connection is set up and how text is searched."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import ColumnElement, Engine, event, text

from neuroexplain.errors import NeuroexplainError

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
    "CREATE INDEX ix_explanations_text_search ON explanations USING gin (to_tsvector('simple', coalesce(text, '')))",
)


def search_ddl(dialect_name: str) -> tuple[str, ...]:
    """The statements that make explanations searchable."""
    return SQLITE_SEARCH_DDL if dialect_name == "sqlite" else POSTGRESQL_SEARCH_DDL


def set_up_connections(engine: Engine, *, create: bool, read_only: bool) -> None:
    """SQLite: write-ahead log, foreign keys, patience with other writers, pages that packed arrays fit. Else nothing."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        if not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def explanations_match(dialect_name: str, query: str) -> ColumnElement[bool]:
    """The condition that an explanation holds every word of `query`: data, never search syntax.

    Raises NeuroexplainError where the query holds no word at all.
    """
    words = re.findall(r"\w+", query)
    if not words:
        raise NeuroexplainError(f"There is no word to search for in {query!r}. Give one or more:  neuroexplain query relief")
    if dialect_name == "sqlite":
        condition = "explanations.id IN (SELECT rowid FROM explanations_fts WHERE explanations_fts MATCH :words)"
        return text(condition).bindparams(words=" ".join(f'"{word}"' for word in words))  # type: ignore[return-value]
    condition = "to_tsvector('simple', coalesce(explanations.text, '')) @@ plainto_tsquery('simple', :words)"
    return text(condition).bindparams(words=" ".join(words))  # type: ignore[return-value]


def upsert(dialect_name: str, table: Any) -> Any:
    """The dialect's INSERT that knows `on_conflict_do_update`."""
    if dialect_name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)
