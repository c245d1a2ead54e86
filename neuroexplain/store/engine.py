"""Open a database: URL or file -> Store. Refuses what is no database of ours, or one of another revision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, exc, make_url, text

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.dialect import checkpointing_beside, set_up_connections

REVISION = "0004"  # the newest migration; a test compares


class Store:
    """One open database. Use it as a context manager, or close it."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name  # as the person named it, without a password
        self._after_commit: Callable[[], None] | None = None

    @property
    def dialect(self) -> str:
        return self.engine.dialect.name

    @property
    def file(self) -> Path | None:
        """The database's file; None where it is none."""
        name = self.engine.url.database
        return Path(name) if self.dialect == "sqlite" and name not in (None, "", ":memory:") else None

    def checkpoint_path(self, run_id: int) -> Path:
        """Where a collection's checkpoint lies: beside an SQLite file, for a database elsewhere in the working folder."""
        name = f"run{run_id}.checkpoint"
        return Path(f"neuroexplain.{name}") if self.file is None else self.file.with_name(f"{self.file.name}.{name}")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it, or none. Raises NeuroexplainError where the disk is full or the database locked."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except exc.OperationalError as error:
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
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_store(where: str, *, create: bool = False, read_only: bool = False) -> Store:
    """Open the database at a URL or file name; with `create`, make it where there is none.

    Raises NeuroexplainError where there is none, it cannot be opened, it is not ours or it is of another revision.
    """
    url = _url(where)
    name = url.render_as_string(hide_password=True) if url.get_backend_name() != "sqlite" else str(url.database)
    is_new = _check_file(url, name, create)
    engine = _engine(url, create=is_new, read_only=read_only)
    store = Store(engine, name)
    try:
        found = _find_revision(engine, name)
        if found is None and (create or is_new):
            _migrate(engine)
        elif found is None:
            raise NeuroexplainError(f"{name} is a database, but not one of neuroexplain's. Give another with --db.")
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
    from sqlalchemy import func, select

    from neuroexplain.store.tables import runs

    with store.read() as connection:
        is_used = bool(connection.execute(select(func.count()).select_from(runs)).scalar())
    store.close()
    if store.file is not None and not is_used:
        for name in ("", "-wal", "-shm"):
            store.file.with_name(store.file.name + name).unlink(missing_ok=True)


def upgrade_store(where: str) -> tuple[str, str]:
    """Bring a database to this version's schema; returns (revision before, revision after)."""
    url = _url(where)
    name = str(url.database)
    _check_file(url, name, create=False)
    engine = _engine(url, create=False, read_only=False)
    try:
        before = _find_revision(engine, name)
        if before is None:
            raise NeuroexplainError(f"{name} is not a database of neuroexplain's: there is nothing to upgrade.")
        if before > REVISION:
            raise NeuroexplainError(
                f"{name} has schema version {before}, newer than {REVISION}. Update neuroexplain to read it."
            )
        _migrate(engine)
    finally:
        engine.dispose()
    return before, REVISION


def migrations_folder() -> Path:
    """Where the migrations are: shipped inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_db" / "migrations"
    return shipped if shipped.is_dir() else package.parent / "db" / "migrations"


def _url(where: str) -> URL:
    if "://" not in where:
        return URL.create("sqlite", database=where)
    try:
        return make_url(where)
    except exc.ArgumentError as error:
        raise NeuroexplainError(
            f"Cannot read the database URL {where!r}. Give a file or a URL:  --db demo.db | postgresql+psycopg://user@host/name"
        ) from error


def _engine(url: URL, *, create: bool, read_only: bool) -> Engine:
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 30}
    try:
        engine = create_engine(url, **options)
    except (exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise NeuroexplainError(
            f"No driver for {url.drivername}: {error}. For PostgreSQL:  pip install 'neuroexplain[postgresql]', "
            "and a URL that begins with postgresql+psycopg://"
        ) from error
    set_up_connections(engine, create=create, read_only=read_only)
    return engine


def _check_file(url: URL, name: str, create: bool) -> bool:
    """Whether an SQLite file is to be made. Raises where that cannot be, or where one should be there."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return create
    path = Path(str(url.database))
    try:
        if path.is_dir():
            raise NeuroexplainError(f"{name} is a folder; a database is a file. Try --db {path / 'neuroexplain.db'}")
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
        raise NeuroexplainError(f"Cannot make {name}: there is no folder {path.absolute().parent}. Make it first.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise NeuroexplainError(f"Cannot make {name}: the folder {path.absolute().parent} cannot be written.")
    return True


def _find_revision(engine: Engine, name: str) -> str | None:
    """The schema version that a database says it has; None where it holds no table of ours."""
    try:
        with engine.connect() as connection:
            if not engine.dialect.has_table(connection, "alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except exc.DatabaseError as error:
        raise NeuroexplainError(f"{name} cannot be opened as a database: {error.orig}. Give another with --db.") from error


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except exc.OperationalError as error:
        raise NeuroexplainError(f"Could not write the tables: {error.orig}.") from error
