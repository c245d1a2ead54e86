"""Open a database by its file name or URL; refuse one of another program or another schema version."""

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
from neuroexplain.store.dialect import HAS_TABLE, set_up_connections
from neuroexplain.store.file_systems import drop_log_on_network
from neuroexplain.store.postponed import indices_after
from neuroexplain.store.reader import FileReaders, Reader, read_engine
from neuroexplain.store.write_ahead_log import checkpoint_by_thread

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

REVISION = "0016"  # the newest migration; a test compares
# The disk that an upgrade needs, as a share of the file: scores are written anew, with a log.
# Measured in docs/benchmarks.md.
ROOM_TO_UPGRADE = 0.25


class Store:
    """One open database. Use it as a context manager, or close it."""

    def __init__(self, where: Path | URL, name: str, *, read_only: bool = False) -> None:
        self.name = name  # as the user named it, without a password
        self.file = where if isinstance(where, Path) else None  # None: the database is not a file
        self._where, self._read_only = where, read_only
        self._file_readers = FileReaders(where, name) if isinstance(where, Path) else None
        self._after_commit: Callable[[], None] | None = None

    @cached_property
    def engine(self) -> Engine:
        """SQLAlchemy's engine; imports SQLAlchemy when it is first used."""
        return _engine(self._where, read_only=self._read_only)

    @property
    def place(self) -> str:
        """What open_store takes to open the same database: a file name, or a URL with its password."""
        if isinstance(self._where, Path):
            return str(self._where)
        return self._where.render_as_string(hide_password=False)

    @property
    def can_write(self) -> bool:
        """Whether it was opened to write, and a file and its folder let us."""
        if self._read_only or self.file is None:
            return not self._read_only
        return os.access(self.file, os.W_OK) and os.access(self.file.absolute().parent, os.W_OK)

    @property
    def dialect(self) -> str:
        return "sqlite" if self.file is not None else self.engine.dialect.name

    def beside(self, name: str) -> Path:
        """A path for an unfinished collection: beside an SQLite file, else in the working folder."""
        if self.file is None:
            return Path(f"neuroexplain.{name}")
        return self.file.with_name(f"{self.file.name}.{name}")

    def checkpoint_path(self, run_id: int) -> Path:
        return self.beside(f"run{run_id}.checkpoint")

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A connection that reads. Raises StoreUnreadable if the database cannot be read."""
        readers = self._file_readers
        with read_engine(self.engine, self.name) if readers is None else readers.read() as reader:
            yield reader

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, written whole or not at all.

        Raises NeuroexplainError if the disk is full, the database locked or the server lost.
        """
        from sqlalchemy.exc import DBAPIError, OperationalError

        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            if not (isinstance(error, OperationalError) or error.connection_invalidated):
                raise
            raise NeuroexplainError(
                f"Could not write to {self.name}: {error.orig}. What was written before is kept."
            ) from error
        if self._after_commit is not None:
            self._after_commit()

    @contextmanager
    def bulk_writing(self) -> Iterator[None]:
        """For many large transactions in a row: SQLite's log is moved into the file meanwhile, and an empty
        database on PostgreSQL gets its keys and indices at the end.
        """
        with indices_after(self.engine), checkpoint_by_thread(self.engine) as after_commit:
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
    """Open the database at a file name or URL; with `create`, create its tables if it is missing or empty.

    Raises NeuroexplainError if it is missing, cannot be opened, belongs to another program, or has another
    schema version. A file with tables of another program is never written to.
    """
    place, name = _locate(where)
    is_new = _check_file(place, name, create)
    if isinstance(place, Path) and not is_new and not read_only:
        drop_log_on_network(place, name)
    store = Store(place, name, read_only=read_only)
    try:
        revision = None if is_new and store.file is not None else _find_revision(store)
        if revision is None and (is_new or (create and _was_cut_off(store))):
            _migrate(store.engine)
        elif revision is None:
            raise NeuroexplainError(
                f"{name} is a database, but not one of neuroexplain's. Give another with --db."
            )
        elif revision != REVISION:
            raise NeuroexplainError(
                f"{name} has schema version {revision}; this neuroexplain reads {REVISION}.\n"
                f"Upgrade it:  neuroexplain upgrade --db {name}"
            )
    except BaseException:
        store.close()
        raise
    return store


def remove_if_unused(store: Store) -> None:
    """Close the database. Delete an SQLite file without a run, so that a failed command leaves no file."""
    with store.read() as reader:
        is_used = reader.value("SELECT count(*) FROM runs") > 0
    store.close()
    if store.file is not None and not is_used:
        for name in ("", "-wal", "-shm"):
            store.file.with_name(store.file.name + name).unlink(missing_ok=True)


def upgrade_store(where: str, tell: Callable[[str], None] | None = None) -> tuple[str, str]:
    """Bring a database to this version's schema. Returns the schema versions before and after.

    If the process is killed, the database stays as it was. `tell` gets a line about the disk that the
    upgrade needs before it begins. Raises NeuroexplainError if the disk has less, or if the database is
    missing, of another program, or newer.
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
        tell(f"Upgrading {file} ({_bytes(size)}): needs up to {_bytes(needed)} of disk, {_bytes(free)} free.")
    if free < needed:
        raise NeuroexplainError(
            f"The disk of {file} has too little room. Free some, or move the file to another disk."
        )


def _bytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def migrations_folder() -> Path:
    """The folder of the migrations: inside the package in a wheel, beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_db" / "migrations"
    return shipped if shipped.is_dir() else package.parent / "db" / "migrations"


def _locate(where: str) -> tuple[Path | URL, str]:
    """The file, or the URL of another database; and its name in messages, without a password."""
    if "://" not in where:
        return Path(where), where
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(where)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        raise NeuroexplainError(
            f"Cannot read the database URL {where!r}. "
            "Give a file or a URL:  --db demo.db | postgresql+psycopg://user@host/name"
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
            f"There is no driver for {url.drivername}: {error}. "
            "For PostgreSQL:  pip install 'neuroexplain[postgresql]', "
            "and a URL that begins with postgresql+psycopg://"
        ) from error
    set_up_connections(engine, read_only=read_only)
    return engine


def _check_file(path: Path | URL, name: str, create: bool) -> bool:
    """Whether to create the tables. Raises NeuroexplainError if the file is missing or cannot be used."""
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
            f"There is no database {name}.\n"
            f"Create one:  neuroexplain collect --db {name} ..., or neuroexplain demo"
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise NeuroexplainError(
            f"Cannot create {name}: there is no folder {folder}. Create the folder first."
        )
    if not os.access(folder, os.W_OK):
        raise NeuroexplainError(f"Cannot create {name}: the folder {folder} cannot be written to.")
    return True


def _find_revision(store: Store) -> str | None:
    """The schema version of a database; None if it holds no table of neuroexplain."""
    try:
        with store.read() as reader:
            if not reader.value(HAS_TABLE[store.dialect], name="alembic_version"):
                return None
            return next(iter(reader.column("SELECT version_num FROM alembic_version")), None)
    except StoreUnreadable as error:
        raise StoreUnreadable(f"{error} Give another with --db.") from error


def _was_cut_off(store: Store) -> bool:
    """Whether it is an SQLite file without any table: one whose making was interrupted."""
    with store.read() as reader:
        return store.file is not None and not reader.column("SELECT name FROM sqlite_master LIMIT 1")


def _migrate(engine: Engine) -> None:
    """Bring the tables to this version's schema in one transaction. If it fails, they stay as they were."""
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
            f"Could not write the tables: {error.orig}. The database is unchanged."
        ) from error


@contextmanager
def _whole_transaction(connection: Connection) -> Iterator[None]:
    """SQLite: begin the transaction now, since Python's driver would change tables before it begins one."""
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
