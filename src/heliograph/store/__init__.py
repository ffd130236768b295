"""SQLite: one writing connection behind a lock, read-only readers beside it.

Every method that writes is one transaction: what it stored is on the card when it returns.
"""

from __future__ import annotations

from pathlib import Path

from heliograph.core.errors import StoreError
from heliograph.store.chain import Chain
from heliograph.store.connection import FILE, Connection
from heliograph.store.days import Days
from heliograph.store.evidence import Evidence
from heliograph.store.journal import Journal
from heliograph.store.outbox import Outbox
from heliograph.store.readings import Readings
from heliograph.store.seams import Seams


class Store:
    """What the gateway remembers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
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
        """The one writer; the caller holds the lock of `data_dir`."""
        return cls(Connection.open(data_dir / FILE, write=True))

    @classmethod
    def reader(cls, data_dir: Path) -> Store:
        """A read-only view, beside a running writer or without one."""
        path = data_dir / FILE
        if not path.exists():
            raise StoreError(f"no store at {path}", hint="Start the gateway once: heliograph run")
        return cls(Connection.open(path, write=False))

    def close(self) -> None:
        self._connection.close()
