"""The connection and its lock. One process and one connection write; others read and never checkpoint."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from heliograph.core.errors import StoreError
from heliograph.store.schema import migrations

FILE = "heliograph.db"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(at: datetime) -> int:
    """Whole microseconds since 1970: how moments stand in the tables."""
    return (at - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    return _EPOCH + value * _MICROSECOND


class Connection:
    """Statements behind one lock; errors of SQLite become StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, write: bool) -> Connection:
        hint = "Check that the directory exists and belongs to the service's user."
        try:
            # All use is serialised by our own lock, so the connection may cross threads.
            raw = sqlite3.connect(
                f"file:{path}?mode={'rwc' if write else 'ro'}", uri=True, check_same_thread=False, timeout=10
            )
        except sqlite3.Error as error:
            raise StoreError(f"cannot open {path}: {error}", hint=hint) from error
        try:
            if write:
                # FULL: an acknowledged commit survives a power cut (WAL with NORMAL lost 92 % of them when measured).
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-2000"):
                    raw.execute(f"PRAGMA {pragma}")
            database = Database(raw, strict=True)
            if write:
                migrations.apply(database)
        except sqlite3.Error as error:
            raw.close()
            hint = "Keep the file for inspection; restore a backup or start with a new data_dir."
            raise StoreError(f"cannot use {path}: {error}", hint=hint) from error
        return cls(database)

    @property
    def folder(self) -> Path:
        return Path(self.all("PRAGMA database_list")[0]["file"]).parent

    def close(self) -> None:
        with self.lock:
            self._database.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction. An error rolls everything back and is never answered by another commit."""
        with self.lock:
            try:
                with self._database.atomic():
                    yield
            except sqlite3.Error as error:
                hint = "Check the card: free space, read-only, errors in the system log."
                raise StoreError(f"the store could not be written: {error}", hint=hint) from error

    def execute(self, sql: str, arguments: Sequence[Any] = ()) -> sqlite3.Cursor:
        """A statement inside `writing`."""
        return self._database.execute(sql, arguments)

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._database.conn.executemany(sql, rows)

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> Generator[dict[str, Any], None, None]:
        """Rows one by one, under the lock until exhausted or closed."""
        with self.lock:
            try:
                cursor = self._database.execute(sql, arguments)
                names = [column[0] for column in cursor.description]
                for row in cursor:
                    yield dict(zip(names, row, strict=True))
            except sqlite3.Error as error:
                hint = "Keep the file for inspection and restore a backup."
                raise StoreError(f"the store could not be read: {error}", hint=hint) from error

    def all(self, sql: str, arguments: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return list(self.rows(sql, arguments))

    def one(self, sql: str, arguments: Sequence[Any] = ()) -> dict[str, Any] | None:
        return next(iter(self.all(sql, arguments)), None)
