"""The connection and its lock. One process and one connection write; others read and never checkpoint."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from heliograph.core.errors import StoreError, StoreFault
from heliograph.store.schema import migrations

FILE = "heliograph.db"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Result codes of SQLite that speak of the card and not of us, with what a person can do about them. A lock that cannot
# be had is one of them: nobody else writes here, and one whose release failed is only let go by closing.
FAULTS = {
    sqlite3.SQLITE_FULL: "Make room on the card: df -h shows how full it is.",
    sqlite3.SQLITE_IOERR: "The card may be dying: dmesg shows what the system says. Have a new one at hand.",
    sqlite3.SQLITE_READONLY: "The card is read-only: dmesg shows why. mount -o remount,rw may help, or a new card.",
    sqlite3.SQLITE_CANTOPEN: "Is the card there, writable, and the data_dir the service's own?",
    sqlite3.SQLITE_BUSY: "Another program has the store open for writing: lsof shows which. End it.",
    sqlite3.SQLITE_PROTOCOL: "Another program has the store open for writing: lsof shows which. End it.",
    sqlite3.SQLITE_CORRUPT: "Restart the service: at its start the file is checked and replaced by the newest copy.",
    sqlite3.SQLITE_NOTADB: "Restart the service: at its start the file is checked and replaced by the newest copy.",
}
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
"""At a start, a matter of the copies like a damaged file."""
# Readings that are looked through after a fault, newest first: about a day of ten meters.
LOOK_THROUGH = 15_000


def micros(at: datetime) -> int:
    """Whole microseconds since 1970: how moments stand in the tables."""
    return (at - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    return _EPOCH + value * _MICROSECOND


@dataclass(frozen=True, slots=True)
class Fault:
    """Why nothing is written now."""

    text: str
    code: int

    @property
    def hint(self) -> str:
        return FAULTS[self.code]

    @property
    def full(self) -> bool:
        """Nothing was flushed before it was seen that there is no room: the connection is as good as before."""
        return self.code == sqlite3.SQLITE_FULL

    @property
    def damaged(self) -> bool:
        """It is the file, not the card: it is checked and replaced at a start."""
        return self.code in DAMAGED

    def error(self) -> StoreFault:
        return StoreFault(self.text, hint=self.hint)


def _fault(error: sqlite3.Error, doing: str) -> Fault | None:
    """What an error says about the card; None where it is about something else."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = getattr(error, "sqlite_errorname", "")
    return Fault(f"the store could not be {doing}: {error} ({name})", code) if code in FAULTS else None


class Connection:
    """Statements behind one lock; errors of SQLite become StoreError.

    After an error that comes from the card nothing is written, and a commit is never tried again: the connection is
    closed, and only `mend` opens another one, once what it finds has been checked. A commit that failed may still be
    found there, for the card had all of it but the last word: who offers something again has to look.
    """

    def __init__(self, path: Path, database: Database | None, *, write: bool, fault: Fault | None = None) -> None:
        self.path = path
        self.fault = fault
        self.lock = threading.RLock()
        self._database = database
        self._write = write
        self._existed = os.path.exists(path)  # noqa: PTH110  # Path.exists raises where the card fails
        self._depth = 0
        self._broken = False
        self._mender: int | None = None

    @classmethod
    def open(cls, path: Path, *, write: bool) -> Connection:
        """A writer comes back with its `fault` where the card is in the way, so that the gateway can run without."""
        if not write:
            try:
                return cls(path, _looking(path), write=False)
            except sqlite3.Error as error:
                hint = "Check that the directory exists and belongs to the service's user."
                raise StoreError(f"cannot open {path}: {error}", hint=hint) from error
        try:
            return cls(path, _writing(path, create=True), write=True)
        except sqlite3.Error as error:
            fault = _fault(error, "opened")
            if fault is None or fault.code in DAMAGED or getattr(error, "sqlite_errorcode", 0) in UNREADABLE:
                hint = "Keep the file for inspection; restore a backup or start with a new data_dir."
                raise StoreError(f"cannot use {path}: {error}", hint=hint) from error
            return cls(path, _if_possible(path), write=True, fault=fault)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def close(self) -> None:
        with self.lock:
            self._shut()

    def _shut(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        self._broken = False

    def _ready(self, *, write: bool) -> Database:
        """Without waiting for the lock while a fault lasts."""
        if self.fault is not None and (write or self._database is None) and self._mender != threading.get_ident():
            raise self.fault.error()
        if self._database is None:
            raise StoreError("the store is closed", hint="Report this.")
        return self._database

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction. An error rolls everything back and is never answered by another commit."""
        self._ready(write=True)
        with self.lock, self._until_it_fails("written"), self._ready(write=True).atomic():
            yield

    @contextmanager
    def _until_it_fails(self, doing: str) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        except sqlite3.Error as error:
            found = _fault(error, doing) if self._write else None
            if found is not None:
                self.fault = found
                self._broken = not found.full
            if self.fault is not None:
                raise self.fault.error() from error
            hint = "Check the card: free space, read-only, errors in the system log."
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
                hint = "The file is damaged. Start the gateway: it puts the newest copy in its place."
            raise StoreError(f"the store could not be {doing}: {error}", hint=hint) from error
        finally:
            self._depth -= 1
            if self._depth == 0 and self._broken:
                self._shut()

    def execute(self, sql: str, arguments: Sequence[Any] = ()) -> sqlite3.Cursor:
        """A statement inside `writing`."""
        return self._ready(write=True).execute(sql, arguments)

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._ready(write=True).conn.executemany(sql, rows)

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> Generator[dict[str, Any], None, None]:
        """Rows one by one, under the lock until exhausted or closed."""
        self._ready(write=False)
        with self.lock, self._until_it_fails("read"):
            cursor = self._ready(write=False).execute(sql, arguments)
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    def all(self, sql: str, arguments: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return list(self.rows(sql, arguments))

    def one(self, sql: str, arguments: Sequence[Any] = ()) -> dict[str, Any] | None:
        return next(iter(self.all(sql, arguments)), None)

    def mend(self) -> None:
        """Another connection that has been looked through, in place of one that a fault has ended.

        The fault is over when `mending` has written something. Raises StoreFault while it lasts.
        """
        if self.fault is None or self.fault.full:
            return
        with self.lock:
            self._shut()  # to others it is simply not there while it is looked through, which may take seconds
        try:
            _laid_down_again(self.path.with_name(self.path.name + "-wal"))
            database = _writing(self.path, create=not self._existed)
            try:
                _looked_through(database)
            except BaseException:
                database.close()
                raise
        except (sqlite3.Error, OSError) as error:
            # Where it is the old file that cannot be written, it can often be read.
            found = _fault(error, "opened again") if isinstance(error, sqlite3.Error) else None
            text = f"the store could not be opened again: {getattr(error, 'strerror', None) or error}"
            self.fault = found or Fault(text, self.fault.code)
            with self.lock:
                self._database = _if_possible(self.path)
            raise self.fault.error() from error
        with self.lock:
            self._database = database

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Lets this thread write, and ends the fault when that went well."""
        self._mender = threading.get_ident()
        try:
            yield
            self._existed, self.fault = True, None
        finally:
            self._mender = None


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    # All use is serialised by our own lock, so the connection may cross threads.
    return sqlite3.connect(f"file:{path}?mode={mode}", uri=True, check_same_thread=False, timeout=10)


def _writing(path: Path, *, create: bool) -> Database:
    """A file that was there and is not any more must not be replaced by an empty one: it may be back in a moment."""
    raw = _connected(path, "rwc" if create else "rw")
    try:
        # FULL: an acknowledged commit survives a power cut (WAL with NORMAL lost 92 % of them when measured).
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-2000"):
            raw.execute(f"PRAGMA {pragma}")
        database = Database(raw, strict=True)
        migrations.apply(database)
    except BaseException:
        raw.close()
        raise
    return database


def _looking(path: Path) -> Database:
    """Read-only. On a read-only card, a file without a log cannot be opened in any other way than as immutable."""
    raw = _connected(path, "ro")
    try:
        raw.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.Error:
        raw.close()
        if os.access(path.parent, os.W_OK) or os.path.exists(f"{path}-wal"):  # noqa: PTH110  # see above
            raise
        raw = _connected(path, "ro&immutable=1")
    return Database(raw, strict=True)


def _if_possible(path: Path) -> Database | None:
    try:
        return _looking(path)
    except sqlite3.Error:
        return None


def _laid_down_again(log: Path) -> None:
    """Writes the log over itself and flushes it.

    When a flush fails, Linux takes the pages for clean although they never reached the card, and the next flush
    leaves them out and succeeds. What SQLite finds in such a log would be believed, and lost at the next power cut.
    """
    try:
        handle = os.open(log, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        at = 0
        while piece := os.pread(handle, 1 << 16, at):
            at += os.pwrite(handle, piece, at)
        os.fsync(handle)
    finally:
        os.close(handle)


def _looked_through(database: Database) -> None:
    """The ledger wholly, and the newest readings: what was being written when the fault came.

    The bulk of old readings is not gone through, for that takes minutes on a slow card, and nothing has touched it.
    """
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        if table != "reading":
            found = database.execute(f"PRAGMA quick_check('{table}')").fetchone()
            if found != ("ok",):
                raise _damaged(f"{table}: {found[0]}")
    database.execute(
        "SELECT sum(length(words) + length(vals) + length(doubt)) FROM reading"
        " WHERE id > (SELECT max(id) FROM reading) - ?",
        [LOOK_THROUGH],
    ).fetchone()
    lost = database.execute(
        "SELECT name FROM meter WHERE last NOT NULL AND NOT EXISTS (SELECT 1 FROM reading WHERE id = meter.last)"
    ).fetchone()
    if lost is not None:
        raise _damaged(f"the newest reading of {lost[0]} is not there")


def _damaged(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    return error
