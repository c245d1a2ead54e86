"""Reading: SQL with `:names` -> rows with named columns. SQLite files by the standard library, all else by SQLAlchemy.

Both take the same SQL. Importing SQLAlchemy takes longer than all else that `query` and `show` do (docs/decisions.md), and they
only read.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import StoreUnreadable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Ask = Callable[
    [str, dict[str, Any]], tuple[Sequence[str], list[Any]]
]  # SQL and its values -> names of columns, rows


class Reader:
    """A connection that reads."""

    def __init__(self, dialect: str, ask: Ask) -> None:
        self.dialect = dialect
        self._ask = ask

    def rows(self, sql: str, **values: Any) -> list[Any]:
        """All rows as named tuples. Raises StoreUnreadable where the database cannot be read."""
        names, found = self._ask(sql, values)
        return list(map(_row_type(tuple(names)), found))

    def row(self, sql: str, **values: Any) -> Any | None:
        """The first row, or None."""
        return next(iter(self.rows(sql, **values)), None)

    def column(self, sql: str, **values: Any) -> list[Any]:
        """The first value of every row."""
        return [row[0] for row in self._ask(sql, values)[1]]

    def value(self, sql: str, **values: Any) -> Any:
        """The first value of the first row, which there is."""
        return self.column(sql, **values)[0]


class FileReaders:
    """Connections to an SQLite file, one for each that reads at a time; those at rest are kept."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        self._resting: deque[sqlite3.Connection] = deque()
        self._is_closed = False

    @contextmanager
    def read(self) -> Iterator[Reader]:
        connection = self._take()
        try:
            yield Reader("sqlite", lambda sql, values: self._ask(connection, sql, values))
        finally:
            self._resting.append(connection)
            if self._is_closed:
                self.close()

    def close(self) -> None:
        self._is_closed = True
        while self._resting:
            self._resting.pop().close()

    def _take(self) -> sqlite3.Connection:
        try:
            return self._resting.pop()
        except IndexError:
            with _explained(self._name):
                connection = sqlite3.connect(
                    _file_uri(self._file), uri=True, timeout=30, check_same_thread=False
                )
                connection.execute("PRAGMA query_only = ON")
            return connection

    def _ask(
        self, connection: sqlite3.Connection, sql: str, values: dict[str, Any]
    ) -> tuple[Sequence[str], list[Any]]:
        with _explained(self._name):
            cursor = connection.execute(sql, values)
            return [column[0] for column in cursor.description], cursor.fetchall()


def _file_uri(file: Path) -> str:
    """SQLite reads a WAL database with two files beside it. Where it cannot make them, nobody writes, and it does without."""
    log = file.with_name(file.name + "-wal")
    is_still = not os.access(file.parent, os.W_OK) and not log.exists()
    return file.absolute().as_uri() + ("?immutable=1" if is_still else "")


@contextmanager
def read_engine(engine: Engine, name: str) -> Iterator[Reader]:
    """A connection of SQLAlchemy's that reads."""
    from sqlalchemy.exc import DBAPIError, ProgrammingError

    try:
        with engine.connect() as connection:
            yield reader_of(connection)
    except ProgrammingError:  # our SQL is wrong
        raise
    except DBAPIError as error:
        raise StoreUnreadable(f"{name} cannot be read as a database: {error.orig}.") from error


def reader_of(connection: Connection) -> Reader:
    """To read within a transaction of SQLAlchemy's."""
    from sqlalchemy import text

    def ask(sql: str, values: dict[str, Any]) -> tuple[Sequence[str], list[Any]]:
        result = connection.execute(text(sql), values)
        return list(result.keys()), list(result.all())

    return Reader(connection.dialect.name, ask)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        is_ours = (
            isinstance(error, sqlite3.ProgrammingError)
            or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
        )
        if is_ours:  # our SQL is wrong
            raise
        raise StoreUnreadable(f"{name} cannot be read as a database: {error}.") from error


@lru_cache(maxsize=100)
def _row_type(names: tuple[str, ...]) -> Callable[[Any], Any]:
    row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]
    make: Callable[[Any], Any] = row._make
    return make
