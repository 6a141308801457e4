"""An SQLite file: all or nothing, on the disk, and every fault of it in one sentence."""

import contextlib
import resource
import sqlite3

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.database import Database

SCHEMA = "CREATE TABLE texts (text TEXT);\nPRAGMA user_version = 3"


def open_database(path, timeout=0.01):
    database = Database(path, f"notes {path.name}", "name another", timeout)
    return contextlib.closing(database)


def test_tables_are_made_once_and_commits_are_on_the_disk(tmp_path):
    for is_new in (True, False):
        with open_database(tmp_path / "new" / "a.sqlite") as database:
            with database.transaction():
                assert database.create(SCHEMA) == is_new
            names = "synchronous", "user_version"
            assert [database.query(f"PRAGMA {name}") for name in names] == [[(2,)], [(3,)]]


def test_a_full_disk_takes_nothing_back_but_what_was_not_committed(tmp_path):
    """A limit on the size of files: the kernel writes some bytes, then refuses the rest."""
    path, limits = tmp_path / "a.sqlite", resource.getrlimit(resource.RLIMIT_FSIZE)
    insert, select = "INSERT INTO texts VALUES (:text)", "SELECT text FROM texts"

    def insert_both():
        with database.transaction():
            for text in ("second", "third " * 5000):
                database.query(insert, text=text)

    with open_database(path) as database:
        database.create(SCHEMA)
        database.query("PRAGMA journal_mode = WAL")
        database.query(insert, text="first " * 5000)
        for room in (0, 1, 5000):
            largest = max(file.stat().st_size for file in tmp_path.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, limits[1]))
            message = r"^notes a.sqlite: cannot be used \(.*\); free some space, or name another$"
            try:
                with pytest.raises(InputError, match=message):
                    insert_both()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert database.query(select) == [("first " * 5000,)]
        database.query(insert, text="last")
    with open_database(path) as database:
        assert database.query(select) == [("first " * 5000,), ("last",)]


def lock(path):
    connection = sqlite3.connect(path)
    connection.execute("BEGIN EXCLUSIVE")
    return contextlib.closing(connection)


def spoil(path):
    path.write_bytes(b"no database " * 100)
    return contextlib.nullcontext()


def make_folder(path):
    path.mkdir()
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lock, r"\(database is locked\); another process keeps it; wait for it, or name another"),
        (spoil, r"\(file is not a database\); put back a copy, or name another"),
        (make_folder, r"\(unable to open database file\); check its folder and its rights, or"),
    ],
)
def test_faults(tmp_path, make, message):
    with make(tmp_path / "a.sqlite"), pytest.raises(InputError, match=message):
        open_database(tmp_path / "a.sqlite")
