"""SQLite: one writing connection behind a lock, read-only readers beside it.

Every method that writes is one transaction: what it stored is on the card when it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from heliograph.core.errors import StoreError, StoreFault
from heliograph.store.chain import Chain
from heliograph.store.connection import FILE, Connection, Fault
from heliograph.store.days import Days
from heliograph.store.evidence import Evidence
from heliograph.store.journal import Journal
from heliograph.store.outbox import Outbox
from heliograph.store.readings import Readings
from heliograph.store.reserve import Reserve
from heliograph.store.seams import Seams


class Store:
    """What the gateway remembers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._introduction: Callable[[], None] | None = None
        self.reserve = Reserve(connection.path.parent)
        self.journal = Journal(connection)
        self.readings = Readings(connection)
        self.chain = Chain(connection)
        self.seams = Seams(connection, self.readings, self.journal, self.chain)
        self.outbox = Outbox(connection, self.readings, self.journal, self.chain)
        self.days = Days(connection, self.readings, self.outbox, self.journal, self.seams, self.chain)
        self.evidence = Evidence(connection)

    @property
    def folder(self) -> Path:
        return self._connection.folder

    @classmethod
    def writer(cls, data_dir: Path) -> Store:
        """The one writer; the caller holds the lock of `data_dir`. It may begin with a `fault`."""
        store = cls(Connection.open(data_dir / FILE, write=True))
        store.reserve.hold()
        return store

    @classmethod
    def reader(cls, data_dir: Path) -> Store:
        """A read-only view, beside a running writer or without one."""
        path = data_dir / FILE
        if not path.exists():
            raise StoreError(f"no store at {path}", hint="Start the gateway once: heliograph run")
        return cls(Connection.open(path, write=False))

    @property
    def fault(self) -> Fault | None:
        """Why nothing is written now: the card is full, read-only, or fails. None when all is well."""
        return self._connection.fault

    def introduce(self, introduction: Callable[[], None]) -> None:
        """Runs what has to be written at a start: now, or as soon as a fault is over."""
        self._introduction = introduction
        if self.fault is None:
            with suppress(StoreFault):
                self._introduced()

    def _introduced(self) -> None:
        if self._introduction is not None:
            self._introduction()
            self._introduction = None

    def mend(self) -> None:
        """Tries to write again, after a look at what is there. Raises StoreFault while the fault lasts."""
        fault = self.fault
        if fault is None:
            return
        if fault.full or self.reserve.low():
            self.reserve.give_up()
        self._connection.mend()
        with self._connection.mending():
            self.fold()
            self.readings.renew()
            with self._connection.writing():
                self._connection.execute("UPDATE site SET name = name")  # is written, though it changes nothing
            self._introduced()

    def fold(self) -> None:
        """Brings the log into the file and gives its space back."""
        self._connection.all("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._connection.close()
