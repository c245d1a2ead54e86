"""The files of several attempts at one shard."""

import os
import sqlite3
from pathlib import Path

import pytest

from neuroexplain.launching.attempts import begin_attempt, keep_attempt, list_attempts


@pytest.fixture
def final(tmp_path):
    return tmp_path / "collected-3.db"


def write(file, *values):
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (n)")
        connection.executemany("INSERT INTO numbers VALUES (?)", [(value,) for value in values])
    connection.close()


def read(file):
    with sqlite3.connect(file) as connection:
        numbers = [n for (n,) in connection.execute("SELECT n FROM numbers")]
    connection.close()
    return numbers


def checkpoint(file):
    return file.with_name(f"{file.name}.run1.checkpoint")


def age(file, seconds):
    for path in file.parent.iterdir():
        if path.name.startswith(file.name):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_an_attempt_goes_on_from_the_newest_before(final):
    first = begin_attempt(final)
    assert not first.exists()
    write(first, 1)
    age(first, 100)
    second = begin_attempt(final)
    assert read(second) == [1]
    write(second, 2)
    checkpoint(second).write_text("state of the second")
    age(second, 50)
    third = begin_attempt(final)
    assert len({first, second, third}) == 3
    assert read(third) == [1, 2]
    assert checkpoint(third).read_text() == "state of the second"
    write(first, 3)  # it was thought dead, and is not
    assert read(third) == [1, 2]


def test_an_attempt_is_copied_as_of_its_last_transaction(final):
    first = begin_attempt(final)
    write(first, 1)
    connection = sqlite3.connect(first)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("INSERT INTO numbers VALUES (2)")
    connection.commit()
    connection.execute("INSERT INTO numbers VALUES (3)")  # not committed
    assert read(begin_attempt(final)) == [1, 2]
    connection.close()


def test_what_cannot_be_read_is_passed_over(final):
    first, second = begin_attempt(final), begin_attempt(final)
    write(first, 1)
    age(first, 100)
    second.write_bytes(b"no database at all" * 100)
    third = begin_attempt(final)
    assert read(third) == [1]
    keep_attempt(third, final)
    assert [file.name for file in final.parent.iterdir()] == [final.name]


def test_the_first_whole_attempt_is_kept(final):
    first, second = begin_attempt(final), begin_attempt(final)
    write(first, 1)
    write(second, 2)
    keep_attempt(second, final)
    assert read(final) == [2]
    write(first, 3)  # goes on, and ends later
    keep_attempt(first, final)
    assert read(final) == [2]
    assert list_attempts(final) == []


def test_attempts_at_other_shards_are_left_alone(final):
    other = final.with_name("collected-33.db")
    attempt = begin_attempt(other)
    write(attempt, 1)
    own = begin_attempt(final)
    assert not own.exists()
    write(own, 2)
    keep_attempt(own, final)
    assert read(attempt) == [1]


def test_a_file_system_without_links_keeps_one_attempt_too(final, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = begin_attempt(final), begin_attempt(final)
    write(first, 1)
    write(second, 2)
    keep_attempt(first, final)
    keep_attempt(Path(second), final)
    assert read(final) == [1]
