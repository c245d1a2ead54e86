"""Reading: the same rows by both libraries, many readers at a time, and the message for a broken file."""

import os
import sqlite3
import threading

import pytest
from sqlalchemy import text

from neuroexplain.errors import StoreUnreadable
from neuroexplain.store.engine import open_store
from neuroexplain.store.reader import reader_of
from neuroexplain.store.save_explained import save_prompt

HOSTILE = '\'; DROP TABLE prompts; -- :name %s ? "x"'


def test_a_file_and_sqlalchemy_give_the_same_rows(database):
    with open_store(database, create=True) as store:
        sha256 = save_prompt(store, HOSTILE, "two\nlines")
        sql = (
            "SELECT sha256, name, text, 2 * :two AS four, CAST(:none AS INTEGER) AS unknown "
            "FROM prompts WHERE name = :name"
        )
        values = {"two": 2, "none": None, "name": HOSTILE}
        with store.read() as file_reader, store.engine.connect() as connection:
            for reader in (file_reader, reader_of(connection)):
                assert reader.dialect == store.dialect
                row = reader.row(sql, **values)
                assert tuple(row) == (sha256, HOSTILE, "two\nlines", 4, None)
                assert (row.name, row.four, row.unknown) == (HOSTILE, 4, None)
                assert reader.rows(sql, **values) == [row]
                assert reader.row(sql, **values | {"name": "another"}) is None
                assert reader.column("SELECT name FROM prompts") == [HOSTILE]
                assert reader.value("SELECT count(*) FROM prompts") == 1


def test_a_reader_cannot_write(tmp_path):
    with (
        open_store(str(tmp_path / "x.db"), create=True) as store,
        store.read() as reader,
        pytest.raises(StoreUnreadable, match="readonly"),
    ):
        reader.rows("DELETE FROM prompts RETURNING name")


def test_a_reader_sees_what_was_written_since(database):
    with open_store(database, create=True) as store, store.read() as reader:
        for n in range(3):
            assert reader.value("SELECT count(*) FROM prompts") == n
            save_prompt(store, str(n), str(n))


def test_many_read_at_a_time_while_one_writes(database):
    with open_store(database, create=True) as store:
        seen, faults, written = [], [], threading.Event()

        def read():
            try:
                while not written.is_set():
                    with store.read() as reader:
                        seen.append(reader.value("SELECT count(*) FROM prompts"))
            except StoreUnreadable as error:
                faults.append(error)

        threads = [threading.Thread(target=read) for _ in range(10)]
        for thread in threads:
            thread.start()
        for n in range(50):
            save_prompt(store, str(n), str(n))
        written.set()
        for thread in threads:
            thread.join()
        assert not faults
        assert 0 <= min(seen) <= max(seen) <= 50


def test_closing_closes_the_connections_of_those_who_still_read(tmp_path):
    store = open_store(str(tmp_path / "x.db"), create=True)
    with store.read() as reader:
        store.close()
        assert reader.value("SELECT count(*) FROM prompts") == 0
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        reader.value("SELECT count(*) FROM prompts")


def test_a_broken_file_is_named(tmp_path):
    file = tmp_path / "x.db"
    with open_store(str(file), create=True) as store:
        for n in range(100):
            save_prompt(store, str(n), str(n) * 3_000)
        with store.engine.connect() as connection:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    size = file.stat().st_size
    with file.open("r+b") as broken:
        broken.seek(size // 2)
        broken.write(b"\xff" * (size - size // 2))
    with (
        open_store(str(file)) as store,
        store.read() as reader,
        pytest.raises(StoreUnreadable, match=r"x\.db cannot be read"),
    ):
        reader.rows("SELECT * FROM prompts")


def test_a_file_in_a_read_only_folder_is_opened_as_immutable(tmp_path, monkeypatch):
    """SQLite creates two files beside a database to read it, which it cannot do there."""
    open_store(str(tmp_path / "x.db"), create=True).close()
    monkeypatch.setattr("os.access", lambda _, how: how != os.W_OK)
    with open_store(str(tmp_path / "x.db"), read_only=True) as store, store.read() as reader:
        assert reader.value("SELECT count(*) FROM runs") == 0
        assert [file.name for file in tmp_path.iterdir()] == ["x.db"]
    (tmp_path / "x.db-wal").touch()  # another process writes
    with open_store(str(tmp_path / "x.db"), read_only=True) as store, store.read() as reader:
        assert reader.value("SELECT count(*) FROM runs") == 0
        assert (tmp_path / "x.db-shm").exists()
