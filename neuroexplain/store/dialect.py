"""All that differs between SQLite and PostgreSQL: how a connection is set up and how text is searched."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError

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
    "CREATE INDEX ix_explanations_text_search ON explanations USING gin (to_tsvector('simple', coalesce(text, '')))",
)
NOT_SEARCHABLE = {  # how many explanations of a run the search lacks; PostgreSQL's index is its own affair
    "sqlite": "SELECT count(*) FROM explanations WHERE run_id = :run AND id NOT IN (SELECT id FROM explanations_fts_docsize)",
    "postgresql": "SELECT 0 FROM runs WHERE id = :run",
}

POSTGRESQL_MATCH = "to_tsvector('simple', coalesce(e.text, '')) @@ plainto_tsquery('simple', :words)"
LONGEST_LOG = 1 << 29  # bytes


def search_ddl(dialect_name: str) -> tuple[str, ...]:
    """The statements that make explanations searchable."""
    return SQLITE_SEARCH_DDL if dialect_name == "sqlite" else POSTGRESQL_SEARCH_DDL


def set_up_connections(engine: Engine, *, read_only: bool) -> None:
    """SQLite: write-ahead log, foreign keys, patience with other writers. Else nothing."""
    if engine.dialect.name != "sqlite":
        return
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        if not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


@contextmanager
def checkpointing_beside(engine: Engine, longest: int = LONGEST_LOG) -> Iterator[Callable[[], None]]:
    """SQLite: while much is written, a thread moves the write-ahead log into the file, in place of every commit that does so.

    Gives a function to be called after each commit. It waits for the thread only where the log has become long: it can begin
    anew only when all of it is in the file and nobody writes. Whatever is killed, the log has what the file lacks.
    """
    if engine.dialect.name != "sqlite":
        yield lambda: None
        return

    def set_automatic(pages: int) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {pages}")

    def move(connection: sqlite3.Connection, how: str) -> None:
        with one_at_a_time, suppress(sqlite3.OperationalError):  # a full disk: writing itself will say so
            connection.execute(f"PRAGMA wal_checkpoint({how})").fetchone()

    def move_beside() -> None:
        with closing(sqlite3.connect(file, timeout=30)) as connection:
            is_last = False
            while not is_last:
                committed.wait()
                committed.clear()
                is_last = ended.is_set()
                move(connection, "PASSIVE")

    def after_commit() -> None:
        log = Path(f"{file}-wal")  # there is none where the file system allows no write-ahead log
        if log.exists() and log.stat().st_size > longest:
            with closing(
                sqlite3.connect(file, timeout=1)
            ) as connection:  # a reader may hold the log longer: then later
                move(connection, "TRUNCATE")
        committed.set()

    file, one_at_a_time = str(engine.url.database), threading.Lock()
    committed, ended = threading.Event(), threading.Event()
    set_automatic(0)
    thread = threading.Thread(target=move_beside, name="checkpoints", daemon=True)
    thread.start()
    try:
        yield after_commit
    finally:
        ended.set()
        committed.set()
        thread.join()
        set_automatic(1_000)  # SQLite's own


def search_words(query: str) -> list[str]:
    """The words of a search: data, never search syntax. Raises NeuroexplainError where there is none."""
    words = re.findall(r"\w+", query)
    if not words:
        raise NeuroexplainError(
            f"There is no word to search for in {query!r}. Give one or more:  neuroexplain query relief"
        )
    return words


def matching_ids(dialect_name: str) -> str:
    """A query for the ids of explanations (of all runs) that hold :words, `:n` at most."""
    if dialect_name == "sqlite":
        return "SELECT rowid FROM explanations_fts WHERE explanations_fts MATCH :words LIMIT :n"
    return f"SELECT id FROM explanations e WHERE {POSTGRESQL_MATCH} LIMIT :n"


def explanation_matches(dialect_name: str) -> str:
    """The condition that explanation `e` holds :words, looked up row by row: for words that many hold."""
    if dialect_name == "sqlite":
        return "EXISTS (SELECT 1 FROM explanations_fts WHERE rowid = e.id AND explanations_fts MATCH :words)"
    return POSTGRESQL_MATCH


def as_search(dialect_name: str, words: Sequence[str]) -> str:
    """The value of :words for a search for every word."""
    return " ".join(f'"{word}"' if dialect_name == "sqlite" else word for word in words)


def upsert(dialect_name: str, table: Any) -> Any:
    """The dialect's INSERT that knows `on_conflict_do_update`."""
    if dialect_name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def insert_statement(dialect: Dialect, table: Table, *, n_rows: int, unless_there: bool) -> str:
    """The INSERT of all columns of a table but an id that counts itself, for the values of `n_rows` rows end to end."""
    quote, mark = dialect.identifier_preparer.quote, "?" if dialect.name == "sqlite" else "%s"
    names = [quote(column.name) for column in table.columns if column is not table.autoincrement_column]
    marks = ", ".join([f"({', '.join([mark] * len(names))})"] * n_rows)
    end = " ON CONFLICT DO NOTHING" if unless_there else ""
    return f"INSERT INTO {quote(table.name)} ({', '.join(names)}) VALUES {marks}{end}"
