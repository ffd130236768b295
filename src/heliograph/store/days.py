"""Borders, closed days and days that are held or missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

from heliograph import __version__
from heliograph.core import entries
from heliograph.core.chain import told
from heliograph.core.coverage import OUTCOMES, Coverage, Outcome, Silence
from heliograph.core.daily import Border, Day, Held, day_of
from heliograph.core.errors import StoreError
from heliograph.core.site import Report
from heliograph.store.chain import Chain
from heliograph.store.connection import Connection, micros, moment
from heliograph.store.journal import Journal
from heliograph.store.outbox import Outbox
from heliograph.store.readings import Readings
from heliograph.store.seams import Seams


class Days:
    def __init__(
        self,
        connection: Connection,
        readings: Readings,
        outbox: Outbox,
        journal: Journal,
        seams: Seams,
        chain: Chain,
    ) -> None:
        self._db = connection
        self._readings = readings
        self._outbox = outbox
        self._journal = journal
        self._seams = seams
        self._chain = chain

    _BORDER = "SELECT border.*, meter.name AS meter_name FROM border JOIN meter ON meter.id = border.meter"

    @staticmethod
    def _border(row: Mapping[str, Any]) -> Border:
        return Border(
            moment(row["at"]), row["index_wh"], row["total_wh"], row["method"], row["before"], row["after"], row["id"]
        )

    def last_border(self, meter: str) -> Border | None:
        row = self._db.one(self._BORDER + " WHERE meter.name = ? ORDER BY border.at DESC LIMIT 1", [meter])
        return self._border(row) if row else None

    def first_border(self, meter: str) -> Border | None:
        row = self._db.one(self._BORDER + " WHERE meter.name = ? ORDER BY border.at LIMIT 1", [meter])
        return self._border(row) if row else None

    def _insert_border(self, meter: str, border: Border) -> int:
        cursor = self._db.execute(
            "INSERT INTO border (meter, at, index_wh, total_wh, method, before, after) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self._readings.meter_id(meter),
                micros(border.at),
                border.index_wh,
                border.total_wh,
                border.method,
                border.before,
                border.after,
            ),
        )
        return cast(int, cursor.lastrowid)

    def commission(self, meter: str, border: Border, now: datetime, said: str = "") -> None:
        """The very first border of a meter: where its running total starts. `said`: why not at the baseline."""
        with self._db.writing():
            self._insert_border(meter, border)
            content = {"meter": meter, "border": self._proof(meter, border), "said": said}
            self._chain.append("commission", now, content)

    def made(self, border: Border) -> datetime | None:
        """When a border was written down: with the day it closed, or with the days that are held before it."""
        row = self._db.one(
            "SELECT coalesce((SELECT closed_at FROM day WHERE closing = border.id), (SELECT max(since) FROM held"
            " WHERE held.meter = border.meter AND since <= (SELECT min(closed_at) FROM day WHERE opening = border.id)))"
            " AS made FROM border WHERE id = ?",
            [border.id],
        )
        return moment(row["made"]) if row and row["made"] is not None else None

    def _proof(self, meter: str, border: Border) -> dict[str, Any]:
        """A border with the readings it rests on, as the chain holds it."""
        before = self._readings.reading(border.before)
        after = self._readings.reading(border.after) if border.after is not None else None
        return entries.border(border, before, after, self._seams.all(meter))

    def _prove(self, day: Day, now: datetime, software: str = __version__, **more: Any) -> None:
        serial, closing = self._readings.serial(day.meter), self._proof(day.meter, day.closing)
        self._chain.append("day", now, {**entries.day(day, closing, serial, software), **more})

    def close(self, day: Day, now: datetime, reports: Sequence[Report], said: str = "") -> None:
        """A closed day, its closing border and an outbox row for each uplink, together.

        `said` is what the figure rests on where it is not the meter's word.
        """
        if day.opening.id is None:
            raise StoreError(f"{day.meter} {day.day}: the opening border is not stored", hint="Report this.")
        with self._db.writing():
            closing = replace(day.closing, id=self._insert_border(day.meter, day.closing))
            self._insert_day(replace(day, closing=closing), now)
            self._prove(day, now, said=said)
            for report in reports:
                self._outbox.queue(day.meter, report, now)

    def _insert_day(self, day: Day, now: datetime) -> None:
        self._db.execute(
            "INSERT INTO day (meter, day, opening, closing, period_wh, total_wh, estimated, closed_at, software)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._readings.meter_id(day.meter),
                day.day.isoformat(),
                day.opening.id,
                day.closing.id,
                day.period_wh,
                day.total_wh,
                int(day.estimated),
                micros(now),
                __version__,
            ),
        )

    def hold(self, held: Sequence[Held], closing: Border, now: datetime) -> None:
        """Days without a figure, and the next border that is known: the running total goes on behind them."""
        opening = self.last_border(held[0].meter)
        with self._db.writing():
            self._insert_border(held[0].meter, closing)
            for entry in held:
                self._db.execute(
                    "INSERT INTO held (meter, day, kind, reason, since) VALUES (?, ?, ?, ?, ?)",
                    (
                        self._readings.meter_id(entry.meter),
                        entry.day.isoformat(),
                        entry.kind,
                        entry.reason,
                        micros(now),
                    ),
                )
                self._journal.event(now, entry.kind, f"{entry.meter} {entry.day}", entry.reason)
            self._chain.append(
                "held", now, entries.held(held[0].meter, held, opening, self._proof(held[0].meter, closing))
            )

    def carry_over(self, now: datetime) -> None:
        """Entries for what an older version closed before there was a chain: it proves them from now on."""
        if self._chain.head().seq or self._db.one("SELECT id FROM border LIMIT 1") is None:
            return
        site = self._db.one("SELECT timezone FROM site")
        zone = ZoneInfo(site["timezone"] if site else "UTC")
        with self._db.writing():
            for meter in self._readings.meters():
                for seam in self._seams.all(meter):
                    self._chain.append("seam", now, {**entries.seam(seam, 0), "carried": True})
                held, since, opening = self.held(meter), date.min, None
                days = {day.closing.id: day for day in self.all(meter)}
                for row in self._db.all(self._BORDER + " WHERE meter.name = ? ORDER BY border.at", [meter]):
                    border = self._border(row)
                    here = day_of(border.at, zone)
                    if border.method == "start":
                        content = {"meter": meter, "border": self._proof(meter, border), "carried": True}
                        self._chain.append("commission", now, content)
                    elif (day := days.get(border.id)) is not None:
                        facts = self.facts(meter, day.day) or {}
                        self._prove(day, now, facts["software"], closed_at=told(facts["closed_at"]), carried=True)
                    else:
                        waiting = [one for one in held if since <= one.day < here]
                        content = {**entries.held(meter, waiting, opening, self._proof(meter, border))}
                        self._chain.append("held", now, {**content, "carried": True})
                    since, opening = here, border
            self._outbox.carry_over(now)

    def border_at(self, meter: str, at: datetime) -> Border | None:
        row = self._db.one(self._BORDER + " WHERE meter.name = ? AND border.at = ?", [meter, micros(at)])
        return self._border(row) if row else None

    def release(self, days: Sequence[Day], now: datetime, reports: Sequence[Report], how: str) -> None:
        """Held days with a figure at last: the borders between them, the days and their outbox rows, together."""
        with self._db.writing():
            opening, meter = days[0].opening, days[0].meter
            freed = [day.day.isoformat() for day in days]
            self._chain.append("release", now, {"meter": meter, "how": how, "days": freed})
            for day in days:
                known = self.border_at(day.meter, day.closing.at)
                id = known.id if known is not None else self._insert_border(day.meter, day.closing)
                closing = replace(day.closing, id=id)
                self._insert_day(replace(day, opening=opening, closing=closing), now)
                self._prove(replace(day, opening=opening, closing=closing), now)
                self._db.execute(
                    "UPDATE held SET released = ? WHERE meter = ? AND day = ?",
                    (micros(now), self._readings.meter_id(day.meter), day.day.isoformat()),
                )
                self._journal.event(now, "released", f"{day.meter} {day.day}", how)
                opening = closing
            for report in reports:
                self._outbox.queue(days[0].meter, report, now)

    _DAY = (
        "SELECT day.*, meter.name AS meter_name, o.at AS o_at, o.index_wh AS o_index, o.total_wh AS o_total,"
        " o.method AS o_method, o.before AS o_before, o.after AS o_after, c.at AS c_at, c.index_wh AS c_index,"
        " c.total_wh AS c_total, c.method AS c_method, c.before AS c_before, c.after AS c_after FROM day"
        " JOIN meter ON meter.id = day.meter JOIN border o ON o.id = day.opening JOIN border c ON c.id = day.closing"
    )

    @staticmethod
    def _day(row: Mapping[str, Any]) -> Day:
        def border(prefix: str, id: int) -> Border:
            return Border(
                moment(row[prefix + "at"]),
                row[prefix + "index"],
                row[prefix + "total"],
                row[prefix + "method"],
                row[prefix + "before"],
                row[prefix + "after"],
                id,
            )

        return Day(
            row["meter_name"],
            date.fromisoformat(row["day"]),
            border("o_", row["opening"]),
            border("c_", row["closing"]),
        )

    def all(self, meter: str | None = None, *, first: date = date.min, last: date = date.max) -> list[Day]:
        """By meter and day."""
        # Two statements, for with "? IS NULL OR" no index would be used.
        one = "day.meter = (SELECT id FROM meter WHERE name = ?) AND " if meter is not None else ""
        rows = self._db.all(
            f"{self._DAY} WHERE {one}day.day BETWEEN ? AND ? ORDER BY day.meter, day.day",
            [*([meter] if meter is not None else []), first.isoformat(), last.isoformat()],
        )
        return [self._day(row) for row in rows]

    def latest(self, meter: str) -> Day | None:
        rows = self._db.all(self._DAY + " WHERE meter.name = ? ORDER BY day.day DESC LIMIT 1", [meter])
        return self._day(rows[0]) if rows else None

    def one(self, meter: str, day: date) -> Day | None:
        return next(iter(self.all(meter, first=day, last=day)), None)

    def facts(self, meter: str, day: date) -> dict[str, Any] | None:
        """When and by which software a day was closed."""
        row = self._db.one(
            "SELECT day.closed_at, day.software FROM day JOIN meter ON meter.id = day.meter"
            " WHERE meter.name = ? AND day.day = ?",
            [meter, day.isoformat()],
        )
        return {"closed_at": moment(row["closed_at"]), "software": row["software"]} if row else None

    def coverage(self, meter: str, day: date) -> Coverage | None:
        """What the polls of a local day came to, as far as it has been written down."""
        row = self._db.one(
            "SELECT coverage.* FROM coverage JOIN meter ON meter.id = coverage.meter"
            " WHERE meter.name = ? AND coverage.day = ?",
            [meter, day.isoformat()],
        )
        if row is None:
            return None
        first, last, failed = (
            moment(row[key]) if row[key] is not None else None for key in ("first", "last", "failed")
        )
        gaps = tuple(Silence(moment(start), moment(end), cause) for start, end, cause in json.loads(row["gaps"]))
        counts = {outcome: row[outcome] for outcome in OUTCOMES if row[outcome]}
        every = timedelta(milliseconds=row["every"])
        return Coverage(meter, day, every, counts, first, last, failed, row["failure"], gaps)

    def last_failure(self, meter: str) -> tuple[datetime, Outcome] | None:
        """When a poll last brought no good reading, and what it came to."""
        row = self._db.one(
            "SELECT failed, failure FROM coverage JOIN meter ON meter.id = coverage.meter"
            " WHERE meter.name = ? AND failed NOT NULL ORDER BY day DESC LIMIT 1",
            [meter],
        )
        return (moment(row["failed"]), row["failure"]) if row else None

    def held(self, meter: str | None = None) -> list[Held]:
        one = " AND held.meter = (SELECT id FROM meter WHERE name = ?)" if meter is not None else ""
        rows = self._db.all(
            "SELECT held.*, meter.name AS meter_name FROM held JOIN meter ON meter.id = held.meter"
            f" WHERE held.released IS NULL{one} ORDER BY held.meter, held.day",
            [meter] if meter is not None else [],
        )
        return [Held(row["meter_name"], date.fromisoformat(row["day"]), row["kind"], row["reason"]) for row in rows]
