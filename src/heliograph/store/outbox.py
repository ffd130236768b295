"""Closed days on their way to the platforms. What may follow what stands in core/delivery.py."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from heliograph.core import chain as links
from heliograph.core import entries
from heliograph.core.delivery import (
    HISTORY,
    RETRY,
    SETTLED,
    WITH_NEXT,
    Blocked,
    DayRow,
    Decision,
    Parcel,
    State,
    Verdict,
    advice,
    as_history,
    filled,
    follows,
)
from heliograph.core.errors import StoreError
from heliograph.core.site import Report
from heliograph.store.attempts import Asked, Attempts
from heliograph.store.chain import Chain
from heliograph.store.connection import Connection, micros, moment
from heliograph.store.journal import Journal
from heliograph.store.readings import Readings

# What an answer settled, for the time being or for ever; to be due or unclear again proves nothing.
PROVEN: frozenset[State] = frozenset({"accepted", "confirmed", "rejected", "held"})
# In `learned`: a store that may not know all that was sent, until it is settled (store/opening.py, work/recover.py).
RECOVERY = "recovery"
# A condition in the words of a partial index, which SQLite takes only for itself.
UNDER_WAY = "state NOT IN ('due', 'confirmed')"
# Days with energy of one device that are looked at in one go where each has a request of its own; days without any go
# with them, however many there are.
BEARING = 30
# Beside the store: the number of the newest request that was about to leave. A store that does not know that number is
# older than what was sent.
CLAIMED = "claimed"


def newest_claim(data_dir: Path) -> int | None:
    """What stands beside the store; 0: nothing, None: it cannot be read."""
    try:
        # Empty: made, and then the power went before its first number; nothing leaves before that one is flushed.
        return int((data_dir / CLAIMED).read_text(encoding="ascii") or "0")
    except FileNotFoundError:
        return 0
    except (OSError, ValueError):
        return None


def note_claim(data_dir: Path, number: int) -> None:
    """On the card when it returns; written in place, so that it takes one flush."""
    path = data_dir / CLAIMED
    try:
        fresh = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, f"{number:020d}\n".encode(), 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        if fresh:
            folder = os.open(data_dir, os.O_RDONLY)  # its name, too
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        hint = "Check the card: free space, read-only, errors in the system log."
        raise StoreError(f"{data_dir / CLAIMED} could not be written: {error.strerror}", hint=hint) from error


# The uplinks that have rows, each found by one step in the index rather than by all its rows.
_NAMED = (
    "WITH RECURSIVE every(uplink) AS (SELECT min(uplink) FROM outbox UNION ALL"
    " SELECT (SELECT min(uplink) FROM outbox WHERE uplink > every.uplink) FROM every WHERE uplink IS NOT NULL),"
    " named AS (SELECT uplink FROM every WHERE uplink IS NOT NULL)"
)


class Outbox:
    def __init__(self, connection: Connection, readings: Readings, journal: Journal, chain: Chain) -> None:
        self._db = connection
        self._readings = readings
        self._journal = journal
        self._chain = chain
        self.attempts = Attempts(connection)

    def queue(self, meter: str, report: Report, now: datetime) -> int:
        """Rows for closed days of a meter that have none yet: a day just closed, or all when an uplink is added."""
        lost = self.lost_until(now)
        doubted = -1 if lost is None else micros(lost)
        with self._db.writing():
            cursor = self._db.execute(
                "INSERT INTO outbox (uplink, day, meter, date, remote_id, state, due, changed)"
                " SELECT ?, day.id, day.meter, day.day, ?, CASE WHEN border.at <= ? THEN 'unclear' ELSE 'due' END,"
                " border.at + ?, ? FROM day"
                " JOIN border ON border.id = day.closing WHERE day.meter = ? AND NOT EXISTS"
                " (SELECT 1 FROM outbox WHERE uplink = ? AND outbox.day = day.id)"
                " ORDER BY day.day",
                (
                    report.uplink,
                    report.remote_id,
                    doubted,
                    report.offset // timedelta(microseconds=1),
                    micros(now),
                    self._readings.meter_id(meter),
                    report.uplink,
                ),
            )
            return cursor.rowcount

    def lost_until(self, now: datetime) -> datetime | None:
        """Up to a restore a day may have been sent by the store that was lost; None where none ever was."""
        known = self._journal.learned(RECOVERY)
        if known is None:
            return None
        return now if known["at"] is None else moment(known["at"])

    _ROW = (
        "SELECT outbox.*, meter.name AS meter_name, day.period_wh, day.total_wh, o.at AS start_at, c.at AS end_at,"
        " claim.at AS claimed_at FROM outbox JOIN day ON day.id = outbox.day JOIN meter ON meter.id = outbox.meter"
        " JOIN border o ON o.id = day.opening JOIN border c ON c.id = day.closing"
        " LEFT JOIN claim ON claim.id = outbox.claim"
    )

    @staticmethod
    def _row(row: Mapping[str, Any]) -> DayRow:
        return DayRow(
            row["id"],
            row["meter_name"],
            row["remote_id"],
            date.fromisoformat(row["date"]),
            moment(row["start_at"]),
            moment(row["end_at"]),
            row["period_wh"],
            row["total_wh"],
            row["state"],
            row["attempt"],
            row["rule"],
            row["process_id"],
            moment(row["claimed_at"]) if row["claimed_at"] is not None else None,
            row["claim"],
        )

    def candidates(self, uplink: str, now: datetime, *, ordered: bool, limit: int) -> list[DayRow]:
        """Due rows that may leave now, by meter and day.

        A device's rows stop at the first one that is unclear or not yet due, for days go in order. Where the
        platform insists on order, a rejected or held row and a held day stop them too; elsewhere they are passed by,
        but a day that was only taken for processing may yet fail, so later ones wait for it. A row that is set aside
        stops nobody.
        """
        if ordered:
            stops = self._db.all(
                "SELECT meter, min(day) AS day FROM held WHERE kind = 'held' AND released IS NULL GROUP BY meter"
            )
        else:
            stops = self._db.all(
                f"SELECT meter, min(date) AS day FROM outbox WHERE uplink = ? AND {UNDER_WAY} AND state = 'accepted'"
                " GROUP BY meter",
                [uplink],
            )
        stop = {row["meter"]: row["day"] for row in stops}
        found: list[DayRow] = []
        open_rows = "outbox.uplink = ? AND outbox.state NOT IN ('accepted', 'confirmed')"
        for one in self._db.all(f"SELECT DISTINCT meter FROM outbox WHERE {open_rows} ORDER BY meter", [uplink]):
            meter, bearing = one["meter"], 0
            rows = self._db.rows(
                f"{self._ROW} WHERE {open_rows} AND outbox.meter = ? ORDER BY outbox.date", [uplink, meter]
            )
            with closing(rows):
                for row in rows:
                    if row["state"] in ("rejected", "held") and not ordered:
                        continue
                    waits = row["state"] != "due" or row["due"] > micros(now)
                    if waits and row["rule"].partition("/")[0] in ("aside", "history"):
                        continue  # set aside for good, or no part of the order
                    if waits or row["date"] > stop.get(meter, "9999"):
                        break
                    found.append(self._row(row))
                    # Days asked for as History are no part of the order, and are judged with all their neighbours.
                    bearing += row["period_wh"] > 0 and row["rule"].partition("/")[0] != HISTORY
                    # One read a request: of a long backlog the first days are enough, and every device has a turn.
                    if len(found) >= limit or (ordered and bearing >= BEARING):
                        break
            if len(found) >= limit:
                break
        return found

    def held_back(self, uplink: str, now: datetime, since: datetime) -> bool:
        """Whether due rows wait behind a day of their device that left after `since` and is being processed."""
        row = self._db.one(
            "SELECT 1 AS found FROM outbox JOIN claim ON claim.id = outbox.claim"
            f" WHERE outbox.uplink = ? AND outbox.{UNDER_WAY} AND outbox.state = 'accepted' AND claim.at > ?"
            " AND EXISTS (SELECT 1 FROM outbox"
            " later WHERE later.uplink = outbox.uplink AND later.meter = outbox.meter AND later.date > outbox.date"
            " AND later.state NOT IN ('accepted', 'confirmed') AND later.state = 'due' AND later.due <= ?) LIMIT 1",
            [uplink, micros(since), micros(now)],
        )
        return row is not None

    def waiting(self, uplink: str, state: State, now: datetime, *, limit: int = 3000) -> list[DayRow]:
        """Unclear or accepted rows whose next look is due, by meter and day; whole claims, for they are one request.

        Where days were accepted without a process to follow, all of their device's: they are asked about in one go.
        """
        due = f"FROM outbox WHERE uplink = ? AND {UNDER_WAY} AND state = ? AND due <= ?"
        same = "outbox.process_id IS NULL" if state == "accepted" else "0"
        rows = self._db.all(
            self._ROW + f" WHERE outbox.uplink = ? AND outbox.{UNDER_WAY} AND outbox.state = ? AND (outbox.claim IN"
            f" (SELECT claim {due}) OR {same} AND outbox.meter IN (SELECT meter {due} AND process_id IS NULL))"
            " ORDER BY outbox.meter, outbox.date LIMIT ?",
            [uplink, state, *(uplink, state, micros(now)) * 2, limit],
        )
        return [self._row(row) for row in rows]

    def confirmed(self, uplink: str, first: date, *, whole: bool) -> dict[str, list[DayRow]]:
        """Confirmed rows from a day on, by meter; `whole`: with the earlier days that shared a request with them."""
        rows = self._db.all(
            self._ROW + " WHERE outbox.uplink = ? AND outbox.state = 'confirmed' AND (outbox.date >= ? OR ? AND"
            " outbox.claim IN (SELECT claim FROM outbox WHERE uplink = ? AND state = 'confirmed' AND date >= ?))"
            " ORDER BY outbox.meter, outbox.date",
            [uplink, first.isoformat(), whole, uplink, first.isoformat()],
        )
        found: dict[str, list[DayRow]] = {}
        for row in rows:
            found.setdefault(row["meter_name"], []).append(self._row(row))
        return found

    def claim(self, uplink: str, parcel: Parcel, now: datetime, look: datetime) -> int:
        """On the card before the first byte leaves: from here on the rows are unclear until evidence says more."""
        with self._db.writing():
            cursor = self._db.execute(
                "INSERT INTO claim (uplink, at, path, body, rows) VALUES (?, ?, ?, ?, ?)",
                (uplink, micros(now), parcel.path, zlib.compress(parcel.body), len(parcel.rows)),
            )
            claim = cast(int, cursor.lastrowid)
            for row in parcel.rows:
                changed = self._db.execute(
                    "UPDATE outbox SET state = 'unclear', attempt = attempt + 1, claim = ?, due = ?, changed = ?,"
                    " process_id = NULL WHERE id = ? AND state = 'due' AND rule = ? AND remote_id = ?",
                    (claim, micros(look), micros(now), row.id, row.last_rule, row.remote_id),
                )
                if changed.rowcount != 1:
                    raise StoreError(
                        f"{row.meter} {row.day} is not due any more, or in another way, so it is not claimed",
                        hint="Nothing was sent; the next round looks anew.",
                    )
        note_claim(self._db.folder, claim)
        return claim

    def newest_claim(self) -> int:
        return cast(int, self._db.all("SELECT coalesce(max(id), 0) AS id FROM claim")[0]["id"])

    def unconfirmed(self, uplink: str, meter: str) -> list[DayRow]:
        """Rows of a meter without a final answer, in order of days."""
        rows = self._db.all(
            self._ROW + " WHERE outbox.uplink = ? AND meter.name = ? AND outbox.state <> 'confirmed'"
            " ORDER BY outbox.date",
            [uplink, meter],
        )
        return [self._row(row) for row in rows]

    def settle(
        self,
        verdicts: Iterable[tuple[int, Verdict, datetime]],
        now: datetime,
        *,
        asked: Asked = "send",
        seen: Mapping[int, DayRow] | None = None,
    ) -> None:
        """What answers meant for rows: (row id, verdict, when to look or try again).

        `seen`: the rows as they were judged, where a person may decide about them meanwhile; then the decision stays.
        """
        moved: dict[tuple[Any, ...], list[tuple[str, str, date]]] = {}
        answers: dict[tuple[str, int | None, tuple[State, str, str, str]], list[int]] = {}
        with self._db.writing():
            for id, verdict, due in verdicts:
                row = self._db.one(
                    "SELECT outbox.state, rule, process_id, uplink, date, remote_id, claim, meter.name AS name"
                    " FROM outbox JOIN meter ON meter.id = outbox.meter WHERE outbox.id = ?",
                    [id],
                )
                if row is None:
                    raise StoreError(f"outbox row {id} is not in the store", hint="Report this.")
                state: State = row["state"]
                if seen is not None:
                    was, is_ = seen[id], (state, row["rule"], row["remote_id"])
                    if (was.state, was.last_rule, was.remote_id) != is_:
                        continue
                if verdict.state != state and not follows(state, verdict.state, "platform"):
                    what = f"{row['name']} {row['date']} at {row['uplink']} is {state}"
                    raise StoreError(
                        f"{what}, which no answer turns into {verdict.state}", hint="Report this; nothing was changed."
                    )
                self._db.execute(
                    "UPDATE outbox SET state = ?, rule = ?, answer = ?, remedy = ?, due = ?, changed = ?,"
                    " process_id = coalesce(?, process_id) WHERE id = ?",
                    (
                        verdict.state,
                        verdict.rule,
                        verdict.text,
                        verdict.remedy,
                        micros(due),
                        micros(now),
                        verdict.process_id,
                        id,
                    ),
                )
                result = (verdict.state, verdict.rule, verdict.text, verdict.remedy)
                answers.setdefault((row["uplink"], row["claim"], result), []).append(id)
                if verdict.state in ("rejected", "held") and verdict.state != state:
                    text = f"{verdict.rule} {verdict.text}"
                    self._journal.event(now, verdict.state, f"{row['uplink']} {row['date']}", text)
                if verdict.state != state and verdict.state in PROVEN:
                    process = verdict.process_id or row["process_id"]
                    how = (row["uplink"], verdict.state, verdict.rule, verdict.text, process, row["claim"])
                    moved.setdefault(how, []).append((row["name"], row["remote_id"], date.fromisoformat(row["date"])))
            for (uplink, became, rule, text, process, claim), rows in moved.items():
                for part in entries.one_name_each(rows):
                    content = entries.verdict(uplink, became, rule, text, process, self._request(claim), part)
                    self._chain.append("verdict", now, content)
            for (uplink, claim, result), ids in answers.items():
                self.attempts.record(ids, now, asked, uplink, claim, result)

    def decide(
        self, what: str, uplink: str, wishes: Iterable[tuple[DayRow, Decision]], because: str, now: datetime
    ) -> None:
        """What a person decided about rows that nobody else moves, all of it or nothing."""
        decided: dict[tuple[State, str, str, str], list[DayRow]] = {}
        with self._db.writing():
            for row, wish in wishes:
                if wish.state != row.state and not follows(row.state, wish.state, "person"):
                    raise StoreError(
                        f"{row.meter} {row.day} at {uplink} is {row.state}, which no person turns into {wish.state}",
                        hint="Nothing was changed. What may have arrived is read back by itself: heliograph backlog",
                    )
                name = wish.remote_id or row.remote_id
                told = because if name == row.remote_id else f"as {name}, before as {row.remote_id}. {because}".strip()
                changed = self._db.execute(
                    "UPDATE outbox SET state = ?, rule = ?, answer = ?, remedy = '', due = ?, changed = ?,"
                    " remote_id = ? WHERE id = ? AND state = ? AND rule = ? AND remote_id = ?",
                    (
                        *(wish.state, wish.rule, told, micros(now), micros(now), name),
                        *(row.id, row.state, row.last_rule, row.remote_id),
                    ),
                )
                if changed.rowcount != 1:
                    raise StoreError(
                        f"{row.meter} {row.day} at {uplink} has just become another one",
                        hint="Nothing was changed. Look again: heliograph backlog",
                    )
                decided.setdefault((wish.state, wish.rule, wish.remote_id, told), []).append(row)
            for (state, rule, renamed, told), rows in decided.items():
                for part in entries.one_name_each((row.meter, row.remote_id, row.day) for row in rows):
                    content = entries.decision(uplink, what, state, rule, because, part, renamed)
                    self._chain.append("decision", now, content)
                for claim in {row.claim for row in rows}:
                    ids = [row.id for row in rows if row.claim == claim]
                    self.attempts.record(ids, now, "person", uplink, claim, (state, rule, told, ""))

    def rows(self, uplink: str, meter: str, first: date, last: date) -> list[DayRow]:
        """Rows of a meter from one day to another, in whatever state."""
        rows = self._db.all(
            self._ROW + " WHERE outbox.uplink = ? AND meter.name = ? AND outbox.date BETWEEN ? AND ?"
            " ORDER BY outbox.date",
            [uplink, meter, first.isoformat(), last.isoformat()],
        )
        return [self._row(row) for row in rows]

    def companions(self, uplink: str, rows: Sequence[DayRow]) -> list[DayRow]:
        """Rows of the device of these that wait for a person as well and went with the same requests."""
        claims = {row.claim for row in rows if row.claim is not None and row.state in ("rejected", "held")}
        found = self._db.all(
            self._ROW + " WHERE outbox.uplink = ? AND outbox.meter = (SELECT id FROM meter WHERE name = ?)"
            " AND outbox.state NOT IN ('accepted', 'confirmed') AND outbox.state IN ('rejected', 'held')"
            " ORDER BY outbox.date",
            [uplink, rows[0].meter],
        )
        return [self._row(one) for one in found if one["claim"] in claims]

    def newest_sent(self, uplink: str, remote_id: str) -> date | None:
        """The newest day that a platform has, or may have, under a name."""
        row = self._db.one(
            "SELECT max(date) AS date FROM outbox WHERE uplink = ? AND remote_id = ?"
            " AND state IN ('unclear', 'accepted', 'confirmed')",
            [uplink, remote_id],
        )
        return date.fromisoformat(row["date"]) if row and row["date"] else None

    def old_names(self, uplink: str, meter: str, name: str) -> list[DayRow]:
        """Rows that wait under another name than this one, and have been sent or not; what may be there is left out."""
        rows = self._db.all(
            self._ROW + " WHERE outbox.uplink = ? AND outbox.meter = (SELECT id FROM meter WHERE name = ?)"
            " AND outbox.state NOT IN ('accepted', 'confirmed') AND outbox.state IN ('due', 'rejected', 'held')"
            " AND outbox.remote_id <> ? AND outbox.rule NOT IN (?, ?) ORDER BY outbox.date",
            [uplink, meter, name, *SETTLED],
        )
        return [self._row(row) for row in rows]

    def last_tries(self, rows: Iterable[DayRow]) -> dict[int, tuple[str, bool, str]]:
        """Of each row, the rule of the platform's newest answer, whether it went as History when it went last, and
        the rule of the answer to that request, '' where there was none."""
        rows = list(rows)
        tried, found = self.attempts.of(row.id for row in rows), {}
        for row in rows:
            told = [one["rule"] for one in tried.get(row.id, []) if one["asked"] != "person"]
            wished = [one["rule"] for one in tried.get(row.id, []) if one["asked"] == "person"]
            last = [rule for rule in wished if rule in (RETRY, HISTORY)][-1:]
            sent = ["", *(one["rule"] for one in tried.get(row.id, []) if one["asked"] == "send")]
            newest = told[-1] if told else row.last_rule
            found[row.id] = newest, as_history(row) or last == [HISTORY], sent[-1] if told else row.last_rule
        return found

    def blocked(self, uplink: str) -> list[Blocked]:
        """Of a platform that insists on order: devices of which a day has to be decided before later ones leave."""
        stops: dict[int, Blocked] = {}
        for row in self._db.all(
            "SELECT outbox.*, min(date) AS date, meter.name AS name FROM outbox JOIN meter ON meter.id = outbox.meter"
            f" WHERE uplink = ? AND {UNDER_WAY} AND state IN ('rejected', 'held')"
            " AND rule NOT LIKE 'aside/%' AND rule NOT LIKE 'history%' GROUP BY outbox.meter ORDER BY outbox.meter",
            [uplink],
        ):
            day = date.fromisoformat(row["date"])
            why = f"{row['state']}, {row['rule']} {row['answer']}".strip()
            todo = advice(row["rule"], row["remedy"], row["name"], self._with_companions(row), uplink)
            stops[row["meter"]] = Blocked(uplink, row["name"], day, why, 0, todo)
        for row in self._db.all(
            "SELECT meter, name, min(day) AS date, reason FROM held JOIN meter ON meter.id = held.meter"
            " WHERE kind = 'held' AND released IS NULL GROUP BY meter"
        ):
            day = date.fromisoformat(row["date"])
            if row["meter"] not in stops or day < stops[row["meter"]].day:
                todo = f"Give it a figure: heliograph release {row['name']} {day}"
                stops[row["meter"]] = Blocked(uplink, row["name"], day, f"it is held, {row['reason']}", 0, todo)
        found = []
        for meter, stop in stops.items():
            waiting = self._db.one(
                "SELECT count(*) AS n FROM outbox WHERE uplink = ? AND meter = ? AND date > ?"
                " AND state NOT IN ('accepted', 'confirmed') AND rule NOT LIKE 'aside/%' AND rule NOT LIKE 'history%'",
                [uplink, meter, stop.day.isoformat()],
            )
            found.append(replace(stop, later=waiting["n"] if waiting else 0))
        return [stop for stop in found if stop.later or not stop.why.startswith("it is held")]

    def _with_companions(self, row: Mapping[str, Any]) -> str:
        """A day, or the stretch of days that went in one read with it and are decided with it."""
        rows = self._db.all(
            f"SELECT date FROM outbox WHERE uplink = ? AND {UNDER_WAY} AND state IN ('rejected', 'held') AND meter = ?"
            " AND claim = ? ORDER BY date",
            [row["uplink"], row["meter"], row["claim"]],
        )
        days = [date.fromisoformat(one["date"]) for one in rows]
        if len(days) < 2 or (days[-1] - days[0]).days + 1 != len(days):
            return str(row["date"])  # naming one names them all
        return f"{days[0]}..{days[-1]}"

    def shown(
        self, uplink: str | None = None, meter: str | None = None, day: date | None = None
    ) -> list[dict[str, Any]]:
        """Rows as a person looks at them, by uplink, meter and day; moments as datetimes."""
        rows = self._db.all(
            self._ROW + " WHERE (? IS NULL OR outbox.uplink = ?) AND (? IS NULL OR meter.name = ?)"
            " AND (? IS NULL OR outbox.date = ?) ORDER BY outbox.uplink, outbox.meter, outbox.date",
            [uplink, uplink, meter, meter, *([day.isoformat()] * 2 if day else [None, None])],
        )
        return [self._shown(row) for row in rows]

    def backlog(self, uplink: str | None = None) -> list[dict[str, Any]]:
        """Rows that are not confirmed, by uplink, meter and day."""
        rows = self._db.all(
            self._ROW + " WHERE outbox.state <> 'confirmed' AND (? IS NULL OR outbox.uplink = ?)"
            " ORDER BY outbox.uplink, outbox.meter, outbox.date",
            [uplink, uplink],
        )
        return [self._shown(row) for row in rows]

    def page(
        self, uplink: str | None, meter: str | None, day: date | None, after: int, most: int
    ) -> list[dict[str, Any]]:
        """The first rows behind one of that number, in the order they were queued: not confirmed, or all of a day."""
        # What waits is found by the indexes of what is not confirmed, however many rows are.
        which = (
            "outbox.date = ?"
            if day is not None
            else "outbox.id IN (SELECT id FROM outbox WHERE state NOT IN ('accepted', 'confirmed')"
            " UNION ALL SELECT id FROM outbox WHERE state = 'accepted')"
        )
        rows = self._db.all(
            f"{self._ROW} WHERE {which} AND outbox.id > ? AND (? IS NULL OR outbox.uplink = ?)"
            " AND (? IS NULL OR meter.name = ?) ORDER BY outbox.id LIMIT ?",
            [*([day.isoformat()] if day is not None else []), after, uplink, uplink, meter, meter, most],
        )
        return [self._shown(row) for row in rows]

    def firsts(self, uplink: str, now: datetime) -> dict[str, tuple[date, date | None]]:
        """Of each meter the first day that waits, and the first one that may not leave yet."""
        rows = self._db.all(
            "SELECT meter.name AS name, min(date) AS first, min(CASE WHEN state = 'unclear' OR due > ? THEN date END)"
            " AS stop FROM outbox JOIN meter ON meter.id = outbox.meter WHERE uplink = ?"
            " AND state NOT IN ('accepted', 'confirmed') AND state IN ('due', 'unclear')"
            " AND rule NOT LIKE 'history%' GROUP BY outbox.meter",
            [micros(now), uplink],
        )
        return {
            row["name"]: (date.fromisoformat(row["first"]), date.fromisoformat(row["stop"]) if row["stop"] else None)
            for row in rows
        }

    @staticmethod
    def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "row": row["id"],
            "uplink": row["uplink"],
            "meter": row["meter_name"],
            "remote_id": row["remote_id"],
            "day": date.fromisoformat(row["date"]),
            "period_wh": row["period_wh"],
            "total_wh": row["total_wh"],
            "state": row["state"],
            "attempt": row["attempt"],
            "rule": row["rule"],
            "answer": row["answer"],
            "remedy": row["remedy"],
            "due": moment(row["due"]),
            "changed": moment(row["changed"]),
            "claimed_at": moment(row["claimed_at"]) if row["claimed_at"] is not None else None,
            "process_id": row["process_id"],
            "claim": row["claim"],
        }

    def oldest_open(self, uplink: str) -> date | None:
        row = self._db.one(
            "SELECT min(date) AS date FROM outbox WHERE uplink = ? AND state NOT IN ('accepted', 'confirmed')"
            " AND rule NOT LIKE 'aside/%'",
            [uplink],
        )
        return date.fromisoformat(row["date"]) if row and row["date"] else None

    def trouble(self, uplink: str) -> dict[str, Any] | None:
        """The newest row that was refused, or failed and waits: what a person should read first."""
        row = self._db.one(
            "SELECT state, rule, answer, remedy, date, (SELECT name FROM meter WHERE id = outbox.meter) AS name"
            " FROM outbox WHERE uplink = ? AND state NOT IN ('accepted', 'confirmed')"
            " AND rule NOT IN ('', ?, ?, ?, ?) ORDER BY state IN ('rejected', 'held') DESC, changed DESC LIMIT 1",
            [uplink, *SETTLED, RETRY, HISTORY],
        )
        return {**row, "remedy": filled(row["remedy"], row["name"], row["date"], uplink)} if row else None

    def stuck(self, uplink: str, before: datetime) -> list[tuple[dict[str, Any], datetime]]:
        """Days on their way to a platform that neither it nor a person has moved to their end since before then, and
        since when: without a sure answer, or refused and tried again. The oldest of each meter first."""
        under_way = (
            f"({UNDER_WAY} AND state = 'accepted' OR state NOT IN ('accepted', 'confirmed') AND (state = 'unclear' OR"
            " state = 'due' AND rule NOT IN ('', 'absent', ?, ?) AND remedy NOT LIKE ?))"
        )
        found = self._db.all(
            f"{self._ROW} WHERE outbox.uplink = ? AND {under_way} AND c.at < ? ORDER BY outbox.meter, outbox.date",
            [uplink, RETRY, HISTORY, f"{WITH_NEXT}%", micros(before)],
        )
        tried, late = self.attempts.of(row["id"] for row in found), []
        for row in map(self._shown, found):
            moments = [(one["asked"] == "person", one["at"]) for one in tried.get(row["row"], [])]
            wished = [at for person, at in moments if person]
            since = (
                max(wished) if wished else min((at for _, at in moments), default=row["claimed_at"] or row["changed"])
            )
            if since < before:
                late.append((row, since))
        return late

    def decided_aside(self, uplink: str) -> int:
        """Rows that are set aside and need nobody any more."""
        row = self._db.one(
            "SELECT count(*) AS n FROM outbox WHERE uplink = ? AND state NOT IN ('accepted', 'confirmed')"
            " AND state = 'rejected' AND rule IN (?, ?)",
            [uplink, *SETTLED],
        )
        return int(row["n"]) if row else 0

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows per uplink and state. Nearly all of years are confirmed: those are what the others leave of all."""
        result: dict[str, dict[str, int]] = {}
        for row in self._db.all(
            f"{_NAMED} SELECT uplink, 'all' AS state, (SELECT count(*) FROM outbox WHERE uplink = named.uplink) AS n"
            " FROM named UNION ALL SELECT uplink, 'open', (SELECT count(*) FROM outbox INDEXED BY outbox_open"
            " WHERE uplink = named.uplink AND state NOT IN ('accepted', 'confirmed')) FROM named"
            " UNION ALL SELECT uplink, state, count(*) FROM outbox INDEXED BY outbox_under_way"
            " WHERE state NOT IN ('due', 'confirmed') GROUP BY uplink, state"
        ):
            result.setdefault(row["uplink"], {})[row["state"]] = row["n"]
        for states in result.values():
            every, still_open, accepted = states.pop("all"), states.pop("open"), states.get("accepted", 0)
            due = still_open - (sum(states.values()) - accepted)
            states |= {"due": due, "confirmed": every - still_open - accepted}
        return {uplink: {state: n for state, n in states.items() if n} for uplink, states in result.items()}

    def states(self, first: date) -> dict[tuple[str, date], dict[str, str]]:
        """Of each meter and day from `first` on, the state at each uplink."""
        result: dict[tuple[str, date], dict[str, str]] = {}
        # By the days, in this order: there is no index of what was delivered but that of uplink and day.
        for row in self._db.all(
            f"{_NAMED} SELECT named.uplink, outbox.state, day.day AS date, meter.name AS name FROM named"
            " CROSS JOIN meter CROSS JOIN day ON day.meter = meter.id AND day.day >= ?"
            " CROSS JOIN outbox ON outbox.uplink = named.uplink AND outbox.day = day.id",
            [first.isoformat()],
        ):
            result.setdefault((row["name"], date.fromisoformat(row["date"])), {})[row["uplink"]] = row["state"]
        return result

    def sums(self, uplink: str) -> dict[str, dict[str, int]]:
        """Wh per meter and outbox state."""
        result: dict[str, dict[str, int]] = {}
        for row in self._db.all(
            "SELECT meter.name AS name, outbox.state, sum(day.period_wh) AS wh FROM outbox"
            " JOIN day ON day.id = outbox.day JOIN meter ON meter.id = outbox.meter"
            " WHERE outbox.uplink = ? GROUP BY meter.name, outbox.state",
            [uplink],
        ):
            result.setdefault(row["name"], {})[row["state"]] = row["wh"]
        return result

    def carry_over(self, now: datetime) -> None:
        """Entries for what platforms answered before there was a chain."""
        rows = self._db.all(
            "SELECT uplink, state, claim, date, remote_id, meter.name AS name FROM outbox"
            " JOIN meter ON meter.id = outbox.meter WHERE state IN ('accepted', 'confirmed', 'rejected', 'held')"
            " ORDER BY uplink, state, claim, outbox.meter, date"
        )
        for (uplink, state, claim), group in groupby(rows, key=lambda row: (row["uplink"], row["state"], row["claim"])):
            days = [(row["name"], row["remote_id"], date.fromisoformat(row["date"])) for row in group]
            content = entries.verdict(uplink, state, "carried", "", None, self._request(claim), days)
            self._chain.append("verdict", now, {**content, "carried": True})

    def _request(self, claim: int | None) -> dict[str, Any] | None:
        """A request as the chain names it: by the digest of its body."""
        if claim is None:
            return None
        path, body = self.claim_body(claim)
        row = self._db.one("SELECT at FROM claim WHERE id = ?", [claim])
        at = links.told(moment(row["at"])) if row else None
        return {"claim": claim, "at": at, "path": path, "sha256": links.digest(body).hex()}

    def claim_body(self, claim: int) -> tuple[str, bytes]:
        """Path and body of a request as it was sent."""
        row = self._db.one("SELECT path, body FROM claim WHERE id = ?", [claim])
        if row is None:
            raise StoreError(f"claim {claim} is not in the store", hint="The store is incomplete; restore a backup.")
        return row["path"], zlib.decompress(row["body"])
