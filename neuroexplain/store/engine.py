"""Open a database: URL or file -> Store. Refuses what is no database of ours, or one of another revision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError, StoreUnreadable
from neuroexplain.store.dialect import HAS_TABLE, checkpointing_beside, set_up_connections
from neuroexplain.store.reader import FileReaders, Reader, read_engine

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

REVISION = "0006"  # the newest migration; a test compares
ROOM_TO_UPGRADE = (
    0.25  # of a file's size: the scores anew, and the log of the transaction; measured in docs/benchmarks.md
)


class Store:
    """One open database. Use it as a context manager, or close it."""

    def __init__(self, where: Path | URL, name: str, *, read_only: bool = False) -> None:
        self.name = name  # as the person named it, without a password
        self.file = where if isinstance(where, Path) else None  # None where the database is no file
        self._where, self._read_only = where, read_only
        self._file_readers = FileReaders(where, name) if isinstance(where, Path) else None
        self._after_commit: Callable[[], None] | None = None

    @cached_property
    def engine(self) -> Engine:
        """SQLAlchemy's, imported when it is first needed."""
        return _engine(self._where, read_only=self._read_only)

    @property
    def dialect(self) -> str:
        return "sqlite" if self.file is not None else self.engine.dialect.name

    def beside(self, name: str) -> Path:
        """Where an unfinished collection's files lie: beside an SQLite file, for a database elsewhere in the working folder."""
        return (
            Path(f"neuroexplain.{name}")
            if self.file is None
            else self.file.with_name(f"{self.file.name}.{name}")
        )

    def checkpoint_path(self, run_id: int) -> Path:
        return self.beside(f"run{run_id}.checkpoint")

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A connection that reads. Raises StoreUnreadable where the database cannot be read."""
        with (
            read_engine(self.engine, self.name)
            if self._file_readers is None
            else self._file_readers.read() as reader
        ):
            yield reader

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it, or none. Raises NeuroexplainError where the disk is full or the database locked."""
        from sqlalchemy.exc import OperationalError

        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise NeuroexplainError(
                f"Could not write to {self.name}: {error.orig}. What was finished before is kept."
            ) from error
        if self._after_commit is not None:
            self._after_commit()

    @contextmanager
    def much_writing(self) -> Iterator[None]:
        """For many large transactions in a row: what a commit leaves to be done on the disk is done beside the next one."""
        with checkpointing_beside(self.engine) as after_commit:
            self._after_commit = after_commit
            try:
                yield
            finally:
                self._after_commit = None

    def close(self) -> None:
        if self._file_readers is not None:
            self._file_readers.close()
        if "engine" in self.__dict__:
            self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(where: str, *, create: bool = False, read_only: bool = False) -> Store:
    """Open the database at a URL or file name; with `create`, make it where there is none.

    Raises NeuroexplainError where there is none, it cannot be opened, it is not ours or it is of another revision.
    """
    place, name = _locate(where)
    is_new = _check_file(place, name, create)
    store = Store(place, name, read_only=read_only)
    try:
        found = None if is_new and store.file is not None else _find_revision(store)
        if found is None and (
            is_new or (create and store.file is None)
        ):  # a file with tables is somebody else's
            _migrate(store.engine)
        elif found is None:
            raise NeuroexplainError(
                f"{name} is a database, but not one of neuroexplain's. Give another with --db."
            )
        elif found != REVISION:
            raise NeuroexplainError(
                f"{name} has schema version {found}; this neuroexplain reads {REVISION}.\n"
                f"Upgrade it:  neuroexplain upgrade --db {name}"
            )
    except BaseException:
        store.close()
        raise
    return store


def remove_if_unused(store: Store) -> None:
    """Close the database, and delete an SQLite file that holds no run: nothing half-made is left behind."""
    with store.read() as reader:
        is_used = reader.value("SELECT count(*) FROM runs") > 0
    store.close()
    if store.file is not None and not is_used:
        for name in ("", "-wal", "-shm"):
            store.file.with_name(store.file.name + name).unlink(missing_ok=True)


def upgrade_store(where: str, tell: Callable[[str], None] | None = None) -> tuple[str, str]:
    """Bring a database to this version's schema; returns (revision before, revision after). Killed, it is as it was.

    `tell` is told beforehand how much room on the disk it takes. Raises NeuroexplainError where there is less.
    """
    place, name = _locate(where)
    _check_file(place, name, create=False)
    with Store(place, name) as store:
        before = _find_revision(store)
        if before is None:
            raise NeuroexplainError(
                f"{name} is not a database of neuroexplain's: there is nothing to upgrade."
            )
        if before > REVISION:
            raise NeuroexplainError(
                f"{name} has schema version {before}, newer than {REVISION}. Update neuroexplain to read it."
            )
        if before < REVISION and store.file is not None:
            _check_room(store.file, tell)
        _migrate(store.engine)
        if before < REVISION and store.file is not None:
            with store.engine.connect() as connection:  # the write-ahead log goes into the file
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return before, REVISION


def _check_room(file: Path, tell: Callable[[str], None] | None) -> None:
    size, free = file.stat().st_size, shutil.disk_usage(file.parent).free
    needed = max(int(size * ROOM_TO_UPGRADE), min(size, 1 << 30)) + (1 << 20)
    if tell is not None:
        tell(
            f"Upgrading {file} ({_bytes(size)}): needs up to {_bytes(needed)} of disk, {_bytes(free)} are free."
        )
    if free < needed:
        raise NeuroexplainError(
            f"There is not enough room beside {file}: make some, or move it to another disk."
        )


def _bytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def migrations_folder() -> Path:
    """Where the migrations are: shipped inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_db" / "migrations"
    return shipped if shipped.is_dir() else package.parent / "db" / "migrations"


def _locate(where: str) -> tuple[Path | URL, str]:
    """A file, or the URL of a database that is none; and how it is called in messages, without a password."""
    if "://" not in where:
        return Path(where), where
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(where)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise NeuroexplainError(
            f"Cannot read the database URL {where!r}. Give a file or a URL:  --db demo.db | postgresql+psycopg://user@host/name"
        ) from error
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:" and not url.query:
        return Path(url.database), url.database
    return url, url.render_as_string(hide_password=True)


def _engine(where: Path | URL, *, read_only: bool) -> Engine:
    from sqlalchemy import URL, create_engine
    from sqlalchemy.exc import NoSuchModuleError

    url = URL.create("sqlite", database=str(where)) if isinstance(where, Path) else where
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 30}
    try:
        engine = create_engine(url, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise NeuroexplainError(
            f"No driver for {url.drivername}: {error}. For PostgreSQL:  pip install 'neuroexplain[postgresql]', "
            "and a URL that begins with postgresql+psycopg://"
        ) from error
    set_up_connections(engine, read_only=read_only)
    return engine


def _check_file(path: Path | URL, name: str, create: bool) -> bool:
    """Whether an SQLite file is to be made. Raises where that cannot be, or where one should be there."""
    if not isinstance(path, Path):
        return create
    try:
        if path.is_dir():
            raise NeuroexplainError(
                f"{name} is a folder; a database is a file. Try --db {path / 'neuroexplain.db'}"
            )
        if path.exists() and path.stat().st_size:
            if not os.access(path, os.R_OK):
                raise NeuroexplainError(f"{name} cannot be read: permission denied.")
            return False
    except OSError as error:
        raise NeuroexplainError(f"{name} cannot be opened: {error.strerror}.") from error
    if not create:
        raise NeuroexplainError(
            f"There is no database {name}.\nMake one:  neuroexplain collect --db {name} ..., or neuroexplain demo"
        )
    if not path.absolute().parent.is_dir():
        raise NeuroexplainError(
            f"Cannot make {name}: there is no folder {path.absolute().parent}. Make it first."
        )
    if not os.access(path.absolute().parent, os.W_OK):
        raise NeuroexplainError(f"Cannot make {name}: the folder {path.absolute().parent} cannot be written.")
    return True


def _find_revision(store: Store) -> str | None:
    """The schema version that a database says it has; None where it holds no table of ours."""
    try:
        with store.read() as reader:
            if not reader.value(HAS_TABLE[store.dialect], name="alembic_version"):
                return None
            return next(iter(reader.column("SELECT version_num FROM alembic_version")), None)
    except StoreUnreadable as error:
        raise StoreUnreadable(f"{error} Give another with --db.") from error


def _migrate(engine: Engine) -> None:
    """Bring the tables to this version's, in one transaction: whatever ends it, they are as they were or as they should be."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.exc import OperationalError

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    try:
        with engine.begin() as connection, _whole_transaction(connection):
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        raise NeuroexplainError(
            f"Could not write the tables: {error.orig}. What was there is as it was."
        ) from error


@contextmanager
def _whole_transaction(connection: Connection) -> Iterator[None]:
    """SQLite: begin at once. Python's driver would begin at the first row that is written, after tables were changed."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    before, driver.isolation_level = driver.isolation_level, None
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield
        connection.commit()
    finally:
        driver.isolation_level = before
