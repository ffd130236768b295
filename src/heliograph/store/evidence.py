"""What only an auditor asks: the rows a figure rests on, however old they are. Reads, and never writes."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from heliograph.core.daily import Border
from heliograph.store.connection import Connection, micros, moment


class Evidence:
    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def site(self) -> dict[str, Any] | None:
        """Name and zone of the site whose days these are."""
        return self._db.one("SELECT name, timezone FROM site")

    def meter(self, name: str) -> dict[str, Any] | None:
        """Which counter is production, and the serial number."""
        return self._db.one("SELECT production, serial FROM meter WHERE name = ?", [name])

    def maps(self) -> dict[str, tuple[str, str]]:
        """Name and text of every map that was ever in use, by digest, those they extend included."""
        return {row["digest"]: (row["name"], row["text"]) for row in self._db.all("SELECT * FROM map")}

    def day(self, meter: str, day: date) -> dict[str, Any] | None:
        """A closed day as it was written down, beside what follows from its borders."""
        row = self._db.one(
            "SELECT day.period_wh, day.total_wh, day.closed_at, day.software FROM day"
            " JOIN meter ON meter.id = day.meter WHERE meter.name = ? AND day.day = ?",
            [meter, day.isoformat()],
        )
        return {**row, "closed_at": moment(row["closed_at"])} if row else None

    def held(self, meter: str, day: date) -> dict[str, Any] | None:
        """Why a day is held or missing, or was held before a person released it."""
        row = self._db.one(
            "SELECT held.kind, held.reason, held.since, held.released FROM held JOIN meter ON meter.id = held.meter"
            " WHERE meter.name = ? AND held.day = ?",
            [meter, day.isoformat()],
        )
        if row is None:
            return None
        released = moment(row["released"]) if row["released"] is not None else None
        return {**row, "since": moment(row["since"]), "released": released}

    def borders(self, meter: str, start: datetime, end: datetime) -> tuple[Border | None, Border | None]:
        """The last border at or before `start`, and the first one at or after `end`."""
        query = "SELECT border.* FROM border JOIN meter ON meter.id = border.meter WHERE meter.name = ? AND border.at "
        before = self._db.one(query + "<= ? ORDER BY border.at DESC LIMIT 1", [meter, micros(start)])
        after = self._db.one(query + ">= ? ORDER BY border.at LIMIT 1", [meter, micros(end)])
        return self._border(before), self._border(after)

    @staticmethod
    def _border(row: dict[str, Any] | None) -> Border | None:
        if row is None:
            return None
        fields = (row["index_wh"], row["total_wh"], row["method"], row["before"], row["after"], row["id"])
        return Border(moment(row["at"]), *fields)

    def clock(self, reading: int) -> dict[str, Any]:
        """How a reading was dated (0: not to be trusted, 1: synchronised, 2: afterwards), and by which software."""
        row = self._db.one(
            "SELECT reading.trusted, boot.software FROM reading JOIN boot ON boot.id = reading.boot"
            " WHERE reading.id = ?",
            [reading],
        )
        return row or {"trusted": 0, "software": ""}

    def claim_days(self, claim: int, meter: str) -> list[dict[str, Any]]:
        """The days of a meter that went with one request, oldest first."""
        rows = self._db.all(
            "SELECT outbox.date, day.period_wh, border.at AS end FROM outbox JOIN day ON day.id = outbox.day"
            " JOIN border ON border.id = day.closing JOIN meter ON meter.id = outbox.meter"
            " WHERE outbox.claim = ? AND meter.name = ? ORDER BY outbox.date",
            [claim, meter],
        )
        return [{**row, "day": date.fromisoformat(row["date"]), "end": moment(row["end"])} for row in rows]

    def seam_recorded(self, seam: int) -> datetime | None:
        row = self._db.one("SELECT recorded FROM seam WHERE id = ?", [seam])
        return moment(row["recorded"]) if row else None

    def events(self, subject: str) -> list[dict[str, Any]]:
        """What was noted about one day of a meter, or about a meter, oldest first."""
        rows = self._db.all("SELECT at, kind, text FROM event WHERE subject = ? ORDER BY id", [subject])
        return [{**row, "at": moment(row["at"])} for row in rows]
