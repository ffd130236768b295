"""Where one counter hands over to the next, and what was corrected about that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import cast

from heliograph.core import entries
from heliograph.core.ledger import Seam
from heliograph.core.meaning import Meaning, from_json
from heliograph.store.chain import Chain
from heliograph.store.connection import Connection, micros, moment
from heliograph.store.journal import Journal
from heliograph.store.readings import Readings


class Seams:
    def __init__(self, connection: Connection, readings: Readings, journal: Journal, chain: Chain) -> None:
        self._db = connection
        self._readings = readings
        self._journal = journal
        self._chain = chain

    def all(self, meter: str, *, by: datetime | None = None) -> list[Seam]:
        """In order of time; `by`: only those that had been recorded by then."""
        recorded = micros(by) if by is not None else None
        rows = self._db.all(
            "SELECT seam.* FROM seam JOIN meter ON meter.id = seam.meter WHERE meter.name = ?"
            " AND (? IS NULL OR seam.recorded <= ?) ORDER BY seam.at, seam.id",
            [meter, recorded, recorded],
        )
        return [
            Seam(
                meter,
                moment(row["at"]),
                row["kind"],
                row["old_wh"],
                row["new_wh"],
                row["old_serial"],
                row["new_serial"],
                row["note"],
                row["id"],
                row["corrects"],
                row["moves_wh"] or 0,
                row["floor_wh"] or 0,
                _meaning(row.get("old_meaning")),
                _meaning(row.get("new_meaning")),
            )
            for row in rows
        ]

    def record(self, seam: Seam, settled: Sequence[int], now: datetime) -> int:
        """A seam for ever, and the readings whose doubt it settles; a new meaning is what is booked from there on."""
        meanings = seam.old_meaning, seam.new_meaning
        with self._db.writing():
            cursor = self._db.execute(
                "INSERT INTO seam (meter, at, kind, old_wh, new_wh, old_serial, new_serial, recorded, note,"
                " corrects, moves_wh, floor_wh, old_meaning, new_meaning)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self._readings.meter_id(seam.meter),
                    micros(seam.at),
                    seam.kind,
                    seam.old_wh,
                    seam.new_wh,
                    seam.old_serial,
                    seam.new_serial,
                    micros(now),
                    seam.note,
                    seam.corrects,
                    seam.moves_wh if seam.corrects is not None else None,
                    seam.floor_wh if seam.corrects is not None else None,
                    *(json.dumps(one.as_json()) if one is not None else None for one in meanings),
                ),
            )
            id = cast(int, cursor.lastrowid)
            self._db.execute_many("UPDATE reading SET seam = ? WHERE id = ?", [(id, reading) for reading in settled])
            if seam.new_serial is not None:
                self._readings.remember_serial(seam.meter, seam.new_serial)
            if seam.new_meaning is not None:
                new = seam.new_meaning
                self._readings.remember_meaning(seam.meter, new.quantity, new.as_json())
            self._journal.event(now, seam.kind, seam.meter, str(seam))
            self._chain.append("seam", now, entries.seam(replace(seam, id=id), len(settled)))
        self._readings.forget(seam.meter)
        return id


def _meaning(text: str | None) -> Meaning | None:
    return from_json(json.loads(text)) if text else None
