"""What happened, and what devices and platforms taught us."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from heliograph.store.connection import Connection, micros, moment


class Journal:
    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def learned(self, subject: str) -> Any:
        row = self._db.one("SELECT value FROM learned WHERE subject = ?", [subject])
        return json.loads(row["value"]) if row else None

    def learn(self, subject: str, value: Any) -> None:
        with self._db.writing():
            self._db.execute("INSERT OR REPLACE INTO learned VALUES (?, ?)", [subject, json.dumps(value)])

    def event(self, at: datetime, kind: str, subject: str, text: str) -> None:
        """Counted and visible: rejected, held, missing, merged, pruned, refused."""
        with self._db.writing():
            self._db.execute(
                "INSERT INTO event (at, kind, subject, text) VALUES (?, ?, ?, ?)",
                (micros(at), kind, subject, text[:500]),
            )

    def about(self, kind: str, subject: str) -> list[dict[str, Any]]:
        """Oldest first."""
        rows = self._db.all(
            "SELECT at, kind, subject, text FROM event WHERE kind = ? AND subject = ? ORDER BY id", [kind, subject]
        )
        return [{**row, "at": moment(row["at"])} for row in rows]

    def forget(self, kind: str) -> None:
        """Events of a kind that only tell of routine, when space is short."""
        if self._db.one("SELECT 1 FROM event WHERE kind = ? LIMIT 1", [kind]):
            with self._db.writing():
                self._db.execute("DELETE FROM event WHERE kind = ?", [kind])

    def events(self, limit: int = 50) -> list[dict[str, Any]]:
        rows = self._db.all("SELECT at, kind, subject, text FROM event ORDER BY id DESC LIMIT ?", [limit])
        return [{**row, "at": moment(row["at"])} for row in rows]

    def page(self, before: int | None, most: int) -> list[dict[str, Any]]:
        """The newest events, those before one of them where its number is given."""
        rows = self._db.all(
            "SELECT id, at, kind, subject, text FROM event WHERE id < ? ORDER BY id DESC LIMIT ?",
            [before if before is not None else 1 << 62, most],
        )
        return [{**row, "at": moment(row["at"])} for row in rows]
