"""Meters, maps, boots and what was read."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from heliograph import __version__
from heliograph.core.coverage import OUTCOMES, Coverage
from heliograph.core.daily import Index
from heliograph.core.errors import ConfigError, StoreError
from heliograph.core.readings import TENTATIVE, Moment, Reading, Source
from heliograph.store.connection import Connection, micros, moment

# reading.trusted: 0 on an untrusted clock, 1 on a trusted one, and this where the moment was derived afterwards.
DATED_BACK = 2
# Readings looked at after a restart: ten meters for a week, one sample a minute.
UNDATED_LOOK = 100_000
# Rows that one page of readings looks at: about two weeks of samples a minute.
LOOK = 20_000
# What was read before a moment stands before the readings of a border that is so much later (microseconds).
SURELY_LATER = 2 * 3600 * 1_000_000
# By so much a clock that is trusted may be set back without a reading being overlooked (microseconds).
SET_BACK = 10 * 60 * 1_000_000
# Thinning keeps both ends of a longer gap, for a day that is held rests on them when it is released (microseconds).
GAP = 20 * 60 * 1_000_000


_COVER = (
    f"INSERT INTO coverage (meter, day, every, {', '.join(OUTCOMES)}, first, last, failed, failure, gaps)"
    f" VALUES ({', '.join('?' * (8 + len(OUTCOMES)))}) ON CONFLICT (meter, day) DO UPDATE SET every = excluded.every,"
    f" {', '.join(f'{name} = excluded.{name}' for name in (*OUTCOMES, 'first', 'last', 'failed', 'failure', 'gaps'))}"
)


class Readings:
    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._boot: int | None = None
        self._meters: dict[str, int] = {}
        self._maps: dict[str, int] = {}
        self._layouts: dict[tuple[str, ...], int] = {}
        self._last_good: dict[str, Reading] = {}
        self._undated: int | None = 0
        """From which reading on there may be some on an untrusted clock; None: there are none."""
        self._unclear: set[str] = set()
        """Meters whose newest readings may have been stored by a commit that failed."""

    def begin(self, site: str, timezone: str, boot_id: str, now: datetime) -> None:
        """Opens a run of the daemon: remembers the boot and the software its readings come from."""
        known = self._db.one("SELECT name, timezone FROM site")
        if known is not None and known["timezone"] != timezone:
            raise ConfigError(
                f"site.timezone is {timezone}, but this store's days were closed in {known['timezone']}",
                hint="A zone cannot change under closed days: set it back, or start a new data_dir.",
            )
        with self._db.writing():
            self._db.execute("INSERT OR REPLACE INTO site (id, name, timezone) VALUES (1, ?, ?)", [site, timezone])
            self._db.execute(
                "INSERT OR IGNORE INTO boot (boot, software, sqlite, at) VALUES (?, ?, ?, ?)",
                [boot_id, __version__, sqlite3.sqlite_version, micros(now)],
            )
        row = self._db.one("SELECT id FROM boot WHERE boot = ? AND software = ?", [boot_id, __version__])
        self._boot = row["id"] if row else None
        # An earlier run of this boot may have left undated readings; what lies further back never can be dated.
        newest = self._db.one("SELECT max(id) AS id FROM reading")
        self._undated = max(0, (newest["id"] or 0) - UNDATED_LOOK) if newest else 0

    def know_map(self, digest: str, name: str, text: str) -> None:
        with self._db.writing():
            self._db.execute("INSERT OR IGNORE INTO map (digest, name, text) VALUES (?, ?, ?)", [digest, name, text])

    def know_meter(self, name: str, production: str) -> None:
        """A meter that is known keeps its counter: what is booked of another one is for `remember_meaning` to say."""
        with self._db.writing():
            self._db.execute("INSERT OR IGNORE INTO meter (name, production) VALUES (?, ?)", [name, production])

    def meaning(self, meter: str) -> tuple[str, dict[str, Any] | None] | None:
        """Which counter is booked and what it means (core/meaning.py); None for what never was said of it."""
        row = self._db.one("SELECT * FROM meter WHERE name = ?", [meter])
        if row is None:
            return None
        # A store that an older version wrote last, seen by a reader, has no such column yet.
        return row["production"], json.loads(row["meaning"]) if row.get("meaning") else None

    def remember_meaning(self, meter: str, production: str, meaning: Mapping[str, Any]) -> None:
        """From here on readings with that meaning are what is booked."""
        with self._db.writing():
            text = json.dumps(meaning, separators=(",", ":"))
            self._db.execute("UPDATE meter SET production = ?, meaning = ? WHERE name = ?", [production, text, meter])

    def remember_serial(self, meter: str, serial: str) -> None:
        with self._db.writing():
            self._db.execute("UPDATE meter SET serial = ? WHERE name = ?", [serial, meter])

    def serial(self, meter: str) -> str | None:
        row = self._db.one("SELECT serial FROM meter WHERE name = ?", [meter])
        return row["serial"] if row else None

    def meters(self) -> list[str]:
        return [row["name"] for row in self._db.all("SELECT name FROM meter ORDER BY id")]

    def meter_id(self, name: str) -> int:
        if name not in self._meters:
            row = self._db.one("SELECT id FROM meter WHERE name = ?", [name])
            if row is None:
                raise StoreError(f"no meter {name} in the store", hint="Meters: " + ", ".join(self.meters()))
            self._meters[name] = row["id"]
        return self._meters[name]

    def _map_id(self, digest: str) -> int | None:
        if digest not in self._maps:
            row = self._db.one("SELECT id FROM map WHERE digest = ?", [digest])
            if row is None:
                return None
            self._maps[digest] = row["id"]
        return self._maps[digest]

    def add(self, readings: Sequence[Reading], covered: Sequence[Coverage] = ()) -> None:
        """Stores what one round read, in one commit, and with it what the polls of some days came to."""
        readings = [one for one in readings if one.meter not in self._unclear or not self._there(one)]
        if not readings and not covered:
            return
        try:
            self._add(readings, covered)
        except BaseException:
            self._layouts.clear()  # a layout that was rolled back with its readings must be written again
            raise

    def _add(self, readings: Sequence[Reading], covered: Sequence[Coverage]) -> None:
        added: dict[str, Reading] = {}
        with self._db.writing():
            self._db.execute_many(_COVER, [self._cover(row) for row in covered])
            for reading in readings:
                meter, source = self.meter_id(reading.meter), reading.source
                cursor = self._db.execute(
                    "INSERT INTO reading (prev, meter, at, boot, since_boot, trusted, index_wh, doubt, unit, function,"
                    " address, map, words, layout, vals) VALUES ((SELECT last FROM meter WHERE id = ?),"
                    " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        meter,
                        meter,
                        micros(reading.moment.at),
                        self._boot,
                        round(reading.moment.since_boot * 1000),
                        int(reading.moment.trusted),
                        reading.index_wh,
                        reading.doubt,
                        source.unit if source else None,
                        source.function if source else None,
                        source.address if source else None,
                        self._map_id(source.map_digest) if source else None,
                        struct.pack(f">{len(reading.words)}H", *reading.words),
                        self._layout_id(tuple(reading.values)),
                        json.dumps(list(reading.values.values()), separators=(",", ":")),
                    ),
                )
                self._db.execute("UPDATE meter SET last = ? WHERE id = ?", (cursor.lastrowid, meter))
                if not reading.moment.trusted and self._undated is None:
                    self._undated = cursor.lastrowid
                if reading.good:
                    added[reading.meter] = replace(reading, id=cast(int, cursor.lastrowid))
        self._last_good.update(added)
        self._unclear.difference_update(reading.meter for reading in readings)

    def _there(self, reading: Reading) -> bool:
        """Whether the newest stored reading of its meter and boot is this one, or one after it."""
        row = self._db.one(
            "SELECT reading.since_boot FROM reading JOIN boot ON boot.id = reading.boot"
            " WHERE reading.id = (SELECT last FROM meter WHERE name = ?) AND boot.boot = ?",
            [reading.meter, reading.moment.boot_id],
        )
        return row is not None and row["since_boot"] >= round(reading.moment.since_boot * 1000)

    def renew(self) -> None:
        """Another connection to the store: what was known of it is looked up anew."""
        with self._db.lock:
            for known in (self._meters, self._maps, self._layouts, self._last_good):
                known.clear()
            self._unclear = set(self.meters())

    def _cover(self, row: Coverage) -> tuple[Any, ...]:
        gaps = [(micros(gap.start), micros(gap.end), gap.cause) for gap in row.gaps]
        return (
            self.meter_id(row.meter),
            row.day.isoformat(),
            row.every // timedelta(milliseconds=1),
            *(row.counts.get(outcome, 0) for outcome in OUTCOMES),
            *(micros(at) if at is not None else None for at in (row.first, row.last, row.failed)),
            row.failure,
            json.dumps(gaps, separators=(",", ":")),
        )

    def _layout_id(self, names: tuple[str, ...]) -> int:
        if names not in self._layouts:
            text = json.dumps(names, separators=(",", ":"))
            self._db.execute("INSERT OR IGNORE INTO layout (names) VALUES (?)", [text])
            row = self._db.one("SELECT id FROM layout WHERE names = ?", [text])
            if row is None:
                raise StoreError("a layout that was just written is not there", hint="Report this.")
            self._layouts[names] = row["id"]
        return self._layouts[names]

    _READING = (
        "SELECT reading.*, layout.names AS names, meter.name AS meter_name, boot.boot AS boot_name,"
        " map.digest AS digest FROM reading JOIN meter ON meter.id = reading.meter JOIN boot ON boot.id = reading.boot"
        " JOIN layout ON layout.id = reading.layout LEFT JOIN map ON map.id = reading.map"
    )

    @staticmethod
    def _reading(row: Mapping[str, Any]) -> Reading:
        words = struct.unpack(f">{len(row['words']) // 2}H", row["words"])
        source = None
        if row["function"] is not None:
            source = Source(row["unit"], row["function"], row["address"], len(words), row["digest"] or "")
        return Reading(
            row["meter_name"],
            Moment(moment(row["at"]), row["boot_name"], row["since_boot"] / 1000, bool(row["trusted"])),
            row["index_wh"],
            dict(zip(json.loads(row["names"]), json.loads(row["vals"]), strict=True)),
            words,
            source,
            row["doubt"],
            row["id"],
            row["seam"] is not None,
        )

    def reading(self, id: int) -> Reading:
        row = self._db.one(self._READING + " WHERE reading.id = ?", [id])
        if row is None:
            raise StoreError(f"reading {id} is not in the store", hint="The store is incomplete; restore a backup.")
        return self._reading(row)

    def behind(self, reading: Reading) -> Reading | None:
        """The next stored reading of its meter that was read in a way that was ever booked."""
        row = self._db.one(
            self._READING + " WHERE reading.id > ? AND meter.name = ? AND (instr(doubt, ?) = 0 OR seam IS NOT NULL)"
            " ORDER BY reading.id LIMIT 1",
            [reading.id, reading.meter, TENTATIVE],
        )
        return self._reading(row) if row else None

    def back(self, meter: str) -> Iterator[Reading]:
        """Readings of a meter, newest first, doubtful ones included."""
        row = self._db.one("SELECT last FROM meter WHERE name = ?", [meter])
        at = row["last"] if row else None
        while at is not None:
            row = self._db.one(self._READING + " WHERE reading.id = ?", [at])
            if row is None:
                return
            yield self._reading(row)
            at = row["prev"]

    def between(self, meter: str, first: int, last: int) -> list[Reading]:
        """Readings of a meter with ids from `first` to `last`, oldest first."""
        rows = self._db.all(
            self._READING + " WHERE reading.id BETWEEN ? AND ? AND meter.name = ? ORDER BY reading.id",
            [first, last, meter],
        )
        return [self._reading(row) for row in rows]

    def page(
        self, meter: str, since: datetime | None, until: datetime | None, before: int | None, most: int
    ) -> tuple[list[Reading], int | None]:
        """Samples of a meter read from `since` to before `until`, newest first, behind the one numbered `before`; and
        from which one to go on, None at the end.

        Raises KeyError where that one is not there (any more). So many rows are looked at, however little is found.
        """
        known = self._db.one("SELECT id, last FROM meter WHERE name = ?", [meter])
        if known is None:
            return [], None
        at = known["last"]
        if before is not None:
            row = self._db.one("SELECT prev FROM reading WHERE id = ? AND meter = ?", [before, known["id"]])
            if row is None:
                raise KeyError(before)
            at = row["prev"]
        elif until is not None:
            # Readings are not indexed by time, borders are: behind the second next one nothing is earlier.
            row = self._db.one(
                "SELECT coalesce(after, before) AS id FROM border WHERE meter = ? AND at >= ? ORDER BY at LIMIT 1",
                [known["id"], micros(until) + SURELY_LATER],
            )
            at = row["id"] if row is not None else at
        found: list[Reading] = []
        looked = 0
        passed = None
        while at is not None:
            if looked == LOOK or len(found) == most:
                return found, passed
            row = self._db.one("SELECT prev, at, trusted FROM reading WHERE id = ?", [at])
            if row is None:
                break
            looked += 1
            if since is not None and row["at"] < micros(since) and row["trusted"]:
                break
            if (until is None or row["at"] < micros(until)) and (since is None or row["at"] >= micros(since)):
                found.append(self.reading(at))
            at, passed = row["prev"], at
        return found, None

    def onward(self, meter: str, since: datetime, until: datetime, most: int) -> list[Reading]:
        """Samples of a meter read from `since` to `until` on a trusted clock, oldest first, at most so many.

        Nothing from the first one on that waits for its date (`date_back`), for it may come to lie before the others.
        """
        known = self._db.one("SELECT last FROM meter WHERE name = ?", [meter])
        if known is None or (last := known["last"]) is None:
            return []
        # Readings are not indexed by time, and what waited for a card is stored by one bus after the other: only a
        # meter's own are in its order. Its chain is entered a day at a time, at borders, behind which nothing is
        # earlier than SURELY_LATER before them.
        borders = self._db.all(
            "SELECT coalesce(after, before) AS id, border.at FROM border JOIN meter ON meter.id = border.meter"
            " WHERE meter.name = ? AND border.at BETWEEN ? AND ? ORDER BY border.at",
            [meter, micros(since) + SURELY_LATER, micros(until) + SURELY_LATER],
        )
        for border in borders:
            if found := self._linked(border["id"], last, micros(since), border["at"] - SURELY_LATER, most):
                return found
        return self._linked(last, last, micros(since), micros(until), most)

    def _linked(self, entry: int, last: int, since: int, until: int, most: int) -> list[Reading]:
        """The same of what is linked to a reading; `last` is the newest one."""
        rows = self._db.all(
            "WITH RECURSIVE chain AS (SELECT id, prev, at, trusted, boot FROM reading WHERE id = ? UNION ALL"
            " SELECT reading.id, reading.prev, reading.at, reading.trusted, reading.boot"
            " FROM chain JOIN reading ON reading.id = chain.prev WHERE chain.trusted = 0 OR chain.at >= ?),"
            # Of another boot than the newest reading nothing is dated any more.
            " undated AS (SELECT min(id) AS id FROM chain WHERE trusted = 0 AND boot IN (SELECT same.id FROM boot"
            " JOIN boot AS same ON same.boot = boot.boot WHERE boot.id = (SELECT boot FROM reading WHERE id = ?))"
            f" AND id > (SELECT max(id) FROM reading) - {UNDATED_LOOK}) {self._READING} WHERE reading.id IN"
            " (SELECT id FROM chain WHERE trusted > 0 AND at BETWEEN ? AND ?"
            " AND id < coalesce((SELECT id FROM undated), id + 1) ORDER BY at, id LIMIT ?)"
            " ORDER BY reading.at, reading.id",
            [entry, since - SET_BACK, last, since, until, most],
        )
        return [self._reading(row) for row in rows]

    def since(self, meter: str, at: datetime) -> list[Reading]:
        """Readings from a moment on, oldest first, with the last good one before it."""
        found: list[Reading] = []
        for reading in self.back(meter):
            found.append(reading)
            if reading.moment.at < at and reading.good:
                break
        return found[::-1]

    def beside(self, meter: str, at: datetime) -> tuple[Reading | None, Reading | None]:
        """The last good reading before a moment and the first one from it on, among those that are still kept."""
        good = (
            self._READING + " WHERE meter.name = ? AND index_wh IS NOT NULL AND trusted > 0"
            " AND (doubt = '' OR seam IS NOT NULL)"
        )
        before = self._db.one(good + " AND reading.at < ? ORDER BY reading.id DESC LIMIT 1", [meter, micros(at)])
        after = self._db.one(
            good + " AND reading.at >= ? AND reading.id > ? ORDER BY reading.id LIMIT 1",
            [meter, micros(at), before["id"] if before else 0],
        )
        return (self._reading(before) if before else None), (self._reading(after) if after else None)

    def forget(self, meter: str) -> None:
        """The newest good reading is looked for anew: a seam has made another one good."""
        with self._db.lock:
            self._last_good.pop(meter, None)

    def last(self, meter: str) -> Reading | None:
        return next(self.back(meter), None)

    def last_good(self, meter: str) -> Reading | None:
        """The newest reading that is believed: the base of every continuity check."""
        with self._db.lock:
            if meter not in self._last_good:
                found = next((reading for reading in self.back(meter) if reading.good), None)
                if found is None:
                    return None
                self._last_good[meter] = found
            return self._last_good[meter]

    def date_back(self, boot_id: str, now: datetime, since_boot: float) -> int:
        """Dates this boot's readings from before its clock was trusted, by the boot-time clock, which never steps.

        `now` and `since_boot` are one moment at which the clock is trusted. Returns how many readings were dated.
        """
        if self._undated is None:
            return 0
        rows = self._db.all(
            "SELECT id, since_boot FROM reading WHERE id >= ? AND trusted = 0"
            " AND boot IN (SELECT id FROM boot WHERE boot = ?)",
            [self._undated, boot_id],
        )
        booted = now - timedelta(seconds=since_boot)
        dated = [(micros(booted + timedelta(milliseconds=row["since_boot"])), row["id"]) for row in rows]
        with self._db.writing():
            self._db.execute_many(f"UPDATE reading SET at = ?, trusted = {DATED_BACK} WHERE id = ?", dated)
            if dated:
                text = f"{len(dated)} readings of boot {boot_id} dated from {now:%Y-%m-%d %H:%M:%S} UTC backwards"
                self._db.execute(
                    "INSERT INTO event (at, kind, subject, text) VALUES (?, 'dated', 'reading', ?)", (micros(now), text)
                )
        self._undated = None
        self._last_good.clear()
        return len(dated)

    def first_good(self, meter: str) -> Reading | None:
        row = self._db.one(
            self._READING + " WHERE meter.name = ? AND index_wh IS NOT NULL AND trusted > 0"
            " AND (doubt = '' OR seam IS NOT NULL) ORDER BY reading.id LIMIT 1",
            [meter],
        )
        return self._reading(row) if row else None

    def around(self, meter: str, at: datetime) -> tuple[Index | None, Index | None, str]:
        """The last good index at or before `at`, the first one after it, and a doubt between them.

        Readings on an untrusted clock are passed by: nobody knows on which side of midnight they lie.
        """
        after: Index | None = None
        doubt = ""
        for reading in self.back(meter):
            if not (reading.good and reading.moment.trusted) or reading.id is None or reading.index_wh is None:
                doubt = doubt or reading.doubt
                continue
            index = Index(reading.moment.at, reading.index_wh, reading.id)
            if index.at <= at:
                return index, after, doubt
            after, doubt = index, ""
        return None, after, doubt

    def _still_needed(self) -> dict[int, int]:
        """From when on a meter's samples may still decide something: a held day, and what lies behind its borders."""
        rows = self._db.all(
            "SELECT border.meter, max(border.at) AS at, (SELECT min(day) FROM held WHERE held.meter = border.meter"
            " AND kind = 'held' AND released IS NULL) AS held FROM border GROUP BY border.meter"
        )
        found: dict[int, int] = {}
        for row in rows:
            found[row["meter"]] = row["at"]
            if row["held"]:
                day = micros(datetime.fromisoformat(row["held"]).replace(tzinfo=UTC))
                found[row["meter"]] = min(day - 2 * 86_400_000_000, row["at"])
        return found

    def thin(self, before: datetime, *, hourly: bool, batch: int = 5000) -> int:
        """Removes samples older than `before`: all but one an hour (and every doubtful one), or all.

        Readings that borders rest on stay for ever, and so does each meter's newest. At most `batch` rows are looked
        at per call, oldest first, in one transaction; returns how many went.
        """
        subject = "thin/hourly" if hourly else "thin/all"
        done = self._db.one("SELECT value FROM learned WHERE subject = ?", [subject])
        rows = self._db.all(
            "SELECT id, prev, meter, at, doubt FROM reading WHERE id > ? ORDER BY id LIMIT ?",
            [int(done["value"]) if done else 0, batch],
        )
        rows = [row for row in rows if row["at"] < micros(before)]
        if not rows:
            return 0
        keep = {
            row["id"]
            for row in self._db.all(
                "SELECT before AS id FROM border UNION SELECT after FROM border WHERE after NOT NULL"
            )
        }
        # The newest of each meter here: a reading behind this batch may be linked to it.
        newest: dict[int, Mapping[str, Any]] = {}
        for row in rows:
            earlier = newest.get(row["meter"])
            if hourly and earlier is not None and row["at"] - earlier["at"] > GAP:
                keep |= {earlier["id"], row["id"]}
            newest[row["meter"]] = row
        keep |= {row["id"] for row in newest.values()}
        if not hourly:
            since = self._still_needed()
            keep |= {row["id"] for row in rows if row["at"] >= since.get(row["meter"], row["at"] + 1)}
        hours: set[tuple[int, int]] = set()
        rows = self._left_over(rows, hours) + rows
        gone: dict[int, int | None] = {}
        relinked: list[tuple[int | None, int]] = []
        for row in rows:
            hour = (row["meter"], row["at"] // 3_600_000_000)
            previous = gone.get(row["prev"], row["prev"])
            if row["id"] in keep or (hourly and (row["doubt"] or hour not in hours)):
                hours.add(hour)
                if previous != row["prev"]:
                    relinked.append((previous, row["id"]))
            else:
                gone[row["id"]] = previous
        with self._db.writing():
            self._db.execute_many("UPDATE reading SET prev = ? WHERE id = ?", relinked)
            self._db.execute_many("DELETE FROM reading WHERE id = ?", [(id,) for id in gone])
            self._db.execute("INSERT OR REPLACE INTO learned VALUES (?, ?)", [subject, str(rows[-1]["id"])])
            if gone:
                self._db.execute(
                    "INSERT INTO event (at, kind, subject, text) VALUES (?, 'pruned', 'reading', ?)",
                    [rows[-1]["at"], f"{len(gone)} samples thinned"],
                )
        return len(gone)

    def _left_over(self, rows: Sequence[Mapping[str, Any]], hours: set[tuple[int, int]]) -> list[dict[str, Any]]:
        """The newest row of each meter in the batch before, which was kept for its link alone; now its next is known.

        Without it a batch an hour would keep a row of each meter for ever. Adds the hours that are represented already.
        """
        first: dict[int, Mapping[str, Any]] = {}
        for row in rows:
            first.setdefault(row["meter"], row)
        found = []
        for row in first.values():
            left = self._db.one("SELECT id, prev, meter, at, doubt FROM reading WHERE id = ?", [row["prev"]])
            if left is None:
                continue
            found.append(left)
            earlier = self._db.one("SELECT at FROM reading WHERE id = ?", [left["prev"]])
            if earlier is not None:
                hours.add((left["meter"], earlier["at"] // 3_600_000_000))
        return found
