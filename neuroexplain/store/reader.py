"""Reading: SQL with `:names` gives rows with named columns.

SQLite files are read by the standard library, other databases by SQLAlchemy; both take the same SQL.
Importing SQLAlchemy takes longer than all else that `query` and `show` do (docs/decisions.md), and these
only read.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import StoreUnreadable

ROOM_TO_READ = 1 << 16  # bytes: SQLite's shared memory beside a database has 32 kB

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# SQL and its values -> the names of the columns, and the rows
Execute = Callable[[str, dict[str, Any]], tuple[Sequence[str], list[Any]]]


class Reader:
    """A connection that reads. Its methods raise StoreUnreadable if the database cannot be read."""

    def __init__(self, dialect: str, execute: Execute) -> None:
        self.dialect = dialect
        self._execute = execute

    def rows(self, sql: str, **values: Any) -> list[Any]:
        """All rows as named tuples."""
        names, rows = self._execute(sql, values)
        return list(map(_row_type(tuple(names)), rows))

    def row(self, sql: str, **values: Any) -> Any | None:
        """The first row, or None."""
        return next(iter(self.rows(sql, **values)), None)

    def column(self, sql: str, **values: Any) -> list[Any]:
        """The first value of every row."""
        return [row[0] for row in self._execute(sql, values)[1]]

    def value(self, sql: str, **values: Any) -> Any:
        """The first value of the first row. Raises IndexError if there is no row."""
        return self.column(sql, **values)[0]


class FileReaders:
    """Connections to an SQLite file: each thread that reads has one to itself, and unused ones are kept."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        self._unused: deque[sqlite3.Connection] = deque()
        self._is_closed = False

    @contextmanager
    def read(self) -> Iterator[Reader]:
        connection = self._take()
        try:
            yield Reader("sqlite", lambda sql, values: self._execute(connection, sql, values))
        finally:
            self._unused.append(connection)
            if self._is_closed:
                self.close()

    def close(self) -> None:
        self._is_closed = True
        while self._unused:
            self._unused.pop().close()

    def _take(self) -> sqlite3.Connection:
        try:
            return self._unused.pop()
        except IndexError:
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        with _database_errors(self._name):
            uri = _file_uri(self._file)
            connection = sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
        return connection

    def _execute(
        self, connection: sqlite3.Connection, sql: str, values: dict[str, Any]
    ) -> tuple[Sequence[str], list[Any]]:
        with _database_errors(self._name):
            cursor = connection.execute(sql, values)
            return [column[0] for column in cursor.description], cursor.fetchall()


def _file_uri(file: Path) -> str:
    """SQLite creates two files beside a database with a write-ahead log, even to read it.

    In a read-only folder it cannot, and nobody can be writing, so the file is opened as immutable.
    """
    log = file.with_name(file.name + "-wal")
    is_immutable = not os.access(file.parent, os.W_OK) and not log.exists()
    return file.absolute().as_uri() + ("?immutable=1" if is_immutable else "")


@contextmanager
def read_engine(engine: Engine, name: str) -> Iterator[Reader]:
    """A reader with a connection of SQLAlchemy. `name` names the database in error messages."""
    from sqlalchemy.exc import DBAPIError, ProgrammingError

    try:
        with engine.connect() as connection:
            yield reader_of(connection)
    except ProgrammingError:  # our SQL is wrong
        raise
    except DBAPIError as error:
        raise StoreUnreadable(f"{name} cannot be read as a database: {error.orig}.") from error


def reader_of(connection: Connection) -> Reader:
    """A reader within a transaction of SQLAlchemy."""
    from sqlalchemy import text

    def execute(sql: str, values: dict[str, Any]) -> tuple[Sequence[str], list[Any]]:
        result = connection.execute(text(sql), values)
        return list(result.keys()), list(result.all())

    return Reader(connection.dialect.name, execute)


@contextmanager
def _database_errors(name: str) -> Iterator[None]:
    """Raises StoreUnreadable in place of the library's errors, but for those of our own SQL."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if isinstance(error, sqlite3.ProgrammingError) or code == sqlite3.SQLITE_ERROR:  # our SQL is wrong
            raise
        raise StoreUnreadable(f"{name} cannot be read as a database: {error}{_disk(name)}.") from error


def _disk(name: str) -> str:
    """Whether the disk is full, for a message: SQLite needs a little room even to read."""
    folder = Path(name).absolute().parent
    is_full = folder.is_dir() and shutil.disk_usage(folder).free < ROOM_TO_READ
    return "; its disk is full, so free some room" if is_full else ""


@lru_cache(maxsize=100)
def _row_type(names: tuple[str, ...]) -> Callable[[Any], Any]:
    row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]
    make_row: Callable[[Any], Any] = row._make
    return make_row
