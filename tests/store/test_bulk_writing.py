"""Many large transactions: a thread moves the log into the file, and nothing is lost or left over."""

import multiprocessing
import os
import signal
import sqlite3

from sqlalchemy import text

from neuroexplain.store import write_ahead_log
from neuroexplain.store.engine import open_store


def fill(store, first, last):
    for n in range(first, last):
        with store.write() as connection:
            connection.exec_driver_sql("INSERT INTO filler VALUES (?, ?)", (n, os.urandom(200_000)))


def make(file):
    with open_store(str(file), create=True) as store, store.write() as connection:
        connection.execute(text("CREATE TABLE filler (n INTEGER PRIMARY KEY, data BLOB)"))


def test_the_log_is_moved_into_the_file_and_stays_short(tmp_path, monkeypatch):
    monkeypatch.setattr(write_ahead_log, "LONGEST_LOG", 2_000_000)
    file, log = tmp_path / "x.db", tmp_path / "x.db-wal"
    make(file)
    with open_store(str(file)) as store:
        with store.bulk_writing():
            fill(store, 0, 60)
        assert file.stat().st_size > 60 * 200_000  # all of it, while the database is still open
        assert log.stat().st_size < 3_000_000  # and the log began anew
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar() == 1_000
        fill(store, 60, 70)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*), sum(length(data)) FROM filler").fetchone() == (
            70,
            70 * 200_000,
        )
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def write_until_killed(file, sender):
    with open_store(str(file)) as store, store.bulk_writing():
        for n in range(10_000):
            fill(store, n, n + 1)
            sender.send(n)


def test_killed_it_keeps_every_finished_transaction(tmp_path):
    file = tmp_path / "x.db"
    make(file)
    for _ in range(3):
        with sqlite3.connect(file) as connection:
            connection.execute("DELETE FROM filler")
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=write_until_killed, args=(file, sender))
        process.start()
        sender.close()
        last = max(receiver.recv() for _ in range(25))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with sqlite3.connect(file) as connection:
            assert connection.execute("SELECT count(*) FROM filler").fetchone()[0] >= last + 1
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
