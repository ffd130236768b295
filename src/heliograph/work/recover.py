"""After a store was lost and a copy took its place: asks the platforms what had been delivered before anything goes on.

Days that a platform holds get exactly the figure it holds; of the others the usual rules decide. Nothing in that span
is closed before every platform of the meter has answered and the meter was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

import structlog

from heliograph.core import daily, delivery, recovery
from heliograph.core.daily import Border, Day, Held
from heliograph.core.delivery import DayRow, Missing, ReadBack, Stored, Unknown
from heliograph.core.errors import HeliographError, StoreFault
from heliograph.core.figures import kwh
from heliograph.core.ledger import continuous
from heliograph.core.readings import Reading
from heliograph.core.recovery import Contradiction, Told
from heliograph.core.site import Meter, Report
from heliograph.ports import Clock, Uplink
from heliograph.store import Store
from heliograph.store.connection import micros, moment
from heliograph.store.outbox import RECOVERY
from heliograph.work.close_days import Rules, around, commission
from heliograph.work.deliver import Pace, free

log = structlog.get_logger()

# Days asked about in one go, within what every uplink answers at once.
ASKED = 50
# How far a platform is asked back where nothing at all is known here any more.
LOOK_BACK = timedelta(days=60)
# Rows that cannot be settled before a person has decided something are looked at again after this.
SELDOM = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a platform said about days of a meter, and when it is asked again."""

    rows: tuple[DayRow, ...]
    found: Mapping[date, ReadBack]
    at: datetime
    ordered: bool
    absent_after: timedelta
    trouble: str
    again: datetime


class Recovery:
    """Asks in the uplinks' jobs, decides in the job that closes days. It remembers only answers; the rest is stored."""

    def __init__(self, meters: Sequence[Meter], rules: Rules) -> None:
        self._meters = meters
        self._rules = rules
        self._heard: dict[tuple[str, str], Heard] = {}

    # Gather

    def ask(self, uplink: Uplink, store: Store, clock: Clock, pace: Pace) -> None:
        """Asks about every meter that waits for it, as far as requests may leave."""
        record = store.journal.learned(RECOVERY)
        if record is None or record["at"] is None or not clock.trusted():
            return
        for meter in self._meters:
            for report in meter.reports:
                if report.uplink != uplink.name:
                    continue
                rows = self._rows(meter, report, uplink.ordered, store, record)
                heard = self._heard.get((uplink.name, meter.id))
                if not rows or (heard is not None and heard.rows == rows and clock.now() < heard.again):
                    continue
                if not free(uplink, pace):
                    return
                self._heard[uplink.name, meter.id] = _ask(uplink, rows, clock, pace, moment(record["at"]))

    def _rows(
        self, meter: Meter, report: Report, ordered: bool, store: Store, record: Mapping[str, Any]
    ) -> tuple[DayRow, ...]:
        """What is to be asked: closed days that may have been sent, and days that were lost (they have no id)."""
        at = moment(record["at"])
        open_rows = [row for row in store.outbox.unconfirmed(report.uplink, meter.id) if row.end <= at]
        doubted = any(row.doubted for row in open_rows)
        lost = self._lost(meter, store, record)
        if not lost and not doubted:
            return ()
        # Where a platform may hold several days as one, those before and between belong to the question.
        rows = [row for row in open_rows if row.doubted or ordered]
        if ordered and rows:
            held = {entry.day for entry in store.days.held(meter.id)}
            lost = sorted({*lost, *(day for day in held if day > rows[0].day and self._end(day) <= at)})
        border = store.days.last_border(meter.id)
        for number, day in enumerate(lost, 1):
            start = daily.start_of(day, self._rules.zone)
            if border is not None and start < border.at < self._end(day):
                start = border.at  # the day of commissioning begins in mid-day
            rows.append(DayRow(-number, meter.id, report.remote_id, day, start, self._end(day), -1, -1, "unclear"))
        return tuple(replace(row, claim=None) for row in sorted(rows, key=lambda row: row.day))

    def _end(self, day: date) -> datetime:
        return daily.end_of(day, self._rules.zone)

    def _lost(self, meter: Meter, store: Store, record: Mapping[str, Any]) -> list[date]:
        """Local days that were over before the restore and are neither closed nor held here."""
        if meter.id in record["done"]:
            return []
        at, border = moment(record["at"]), store.days.last_border(meter.id)
        return list(daily.days_between(border.at if border else at - LOOK_BACK, at, self._rules.zone))

    # Decide and apply

    def settle(self, store: Store, clock: Clock) -> dict[str, str]:
        """Goes as far as the answers allow. Meters of which no day may be closed yet, and why."""
        record = store.journal.learned(RECOVERY)
        if record is None or not clock.trusted():
            return {}
        if record["at"] is None:
            # The clock may not have been right when the copy was put in place; what may have left, left before now.
            record["at"] = micros(clock.now())
            store.journal.learn(RECOVERY, record)
        waiting: dict[str, str] = {}
        for meter in self._meters:
            try:
                reason = self._settle(meter, store, clock, record)
            except StoreFault:
                raise
            except HeliographError as error:
                reason = error.message
                log.error("recovery_failed", meter=meter.id, error=error.message, hint=error.hint)
            if reason:
                waiting[meter.id] = reason
        return waiting

    def _settle(self, meter: Meter, store: Store, clock: Clock, record: dict[str, Any]) -> str:
        if store.days.last_border(meter.id) is None and meter.id not in record["done"]:
            first = store.readings.first_good(meter.id)
            if first is not None and first.moment.at < moment(record["at"]):
                commission(meter, store, clock.now())  # it had been read when the copy was made
        lost = self._lost(meter, store, record)
        heard: list[tuple[Report, Heard]] = []
        reason = ""
        for report in meter.reports:
            one = self._heard.get((report.uplink, meter.id))
            rows = self._rows(meter, report, one.ordered, store, record) if one else ()
            if one is None or (rows and one.rows != rows):
                reason = reason or (f"{report.uplink} has not been asked yet" if lost else "")
            elif rows and one.trouble:
                reason = f"{report.uplink} cannot be asked what it holds: {one.trouble}"
            elif rows and (believed := _believed(one, moment(record["at"]))) is not None:
                reason = f"{report.uplink} does not show some of these days; that is believed at {believed:%H:%M} UTC"
            elif rows:
                heard.append((report, one))
        if lost:
            if reason:
                return reason
            told = [Told(report.uplink, one.ordered, one.rows, one.found) for report, one in heard]
            reason = self._find(meter, lost, told, store, clock.now(), record)
            if reason:
                return reason
            record["done"].append(meter.id)
            store.journal.learn(RECOVERY, record)
        for report, one in heard:
            self._rows_settled(meter, report, one, store, clock.now(), record)
        return ""

    def _rows_settled(
        self, meter: Meter, report: Report, heard: Heard, store: Store, now: datetime, record: Mapping[str, Any]
    ) -> None:
        at = moment(record["at"])
        rows = [row for row in store.outbox.unconfirmed(report.uplink, meter.id) if row.end <= at]
        rows = [row for row in rows if row.day in heard.found]
        verdicts = recovery.settle(Told(report.uplink, heard.ordered, tuple(rows), heard.found))
        marked = {row.id: row for row in rows}
        verdicts = {
            id: delivery.marked(marked[id], verdict) for id, verdict in verdicts.items() if verdict.state != "unclear"
        }
        if not verdicts:
            return
        settled = [(id, verdict, now) for id, verdict in verdicts.items()]
        store.outbox.settle(settled, now, asked="read-back")
        counts: dict[str, int] = {}
        for verdict in verdicts.values():
            counts[verdict.state] = counts.get(verdict.state, 0) + 1
        log.info("recovered_rows", uplink=report.uplink, meter=meter.id, **counts)

    def _find(
        self,
        meter: Meter,
        lost: Sequence[date],
        told: Sequence[Told],
        store: Store,
        now: datetime,
        record: Mapping[str, Any],
    ) -> str:
        """Closes or holds the lost days; why that has to wait, or ''."""
        at, opening = moment(record["at"]), store.days.last_border(meter.id)
        reading = store.readings.last_good(meter.id)
        if reading is None or not reading.moment.trusted or reading.moment.at < at:
            last = store.readings.last(meter.id)
            doubt = f" ({last.doubt})" if last is not None and last.doubt else ""
            return f"the meter has not been read since{doubt}"
        if opening is None:
            return self._anew(meter, told, store, now)
        index = continuous(store.seams.all(meter.id), reading.moment.at, reading.index_wh or 0)
        found = recovery.solve(opening.at, opening.total_wh, told)
        if not isinstance(found, Contradiction):
            most = max(total for border, total in found.at.items() if border <= at)
            if most - opening.total_wh > index - opening.index_wh:
                shown = opening.total_wh + index - opening.index_wh
                found = Contradiction(
                    f"the platforms' figures come to a running total of {kwh(most)} kWh, the meter to {kwh(shown)} kWh"
                )
        if isinstance(found, Contradiction):
            return self._hold(meter, opening, found.reason, store, now, at)
        self._close(meter, opening, lost, found, reading, store, now)
        return ""

    def _close(
        self,
        meter: Meter,
        opening: Border,
        lost: Sequence[date],
        found: recovery.Totals,
        reading: Reading,
        store: Store,
        now: datetime,
    ) -> None:
        """Days between two known borders; what lies behind the last one is left to the usual rules."""
        open_days: list[date] = []
        for day in lost:
            end = self._end(day)
            open_days.append(day)
            if (total := found.at.get(end)) is None:
                continue
            index = opening.index_wh + total - opening.total_wh
            closing = Border(end, index, total, "platform", opening.before, reading.id)
            said = "; ".join(found.said[one] for one in open_days if one in found.said) or "told by the day after it"
            said += f" (asked at {now:%Y-%m-%d %H:%M} UTC)"
            if len(open_days) == 1:
                store.journal.event(now, "recovered", f"{meter.id} {day}", said)
                store.days.close(Day(meter.id, day, opening, closing), now, meter.reports, said)
                log.info("day_recovered", meter=meter.id, day=str(day), kwh=kwh(total - opening.total_wh), how=said)
            else:
                together = kwh(total - opening.total_wh)
                reason = f"the readings were lost, and only their sum is known, {together} kWh: {said}"
                store.days.hold([Held(meter.id, one, "held", reason) for one in open_days], closing, now)
                log.warning("days_held", meter=meter.id, first=str(open_days[0]), last=str(day), reason=reason)
            opening = store.days.last_border(meter.id) or closing
            open_days = []

    def _hold(self, meter: Meter, opening: Border, reason: str, store: Store, now: datetime, at: datetime) -> str:
        """Holds every day up to the first midnight that was metered again; the running total goes on behind it."""
        seams, rules = store.seams.all(meter.id), self._rules
        days: list[date] = []
        for day in daily.days_between(opening.at, now - rules.after, rules.zone):
            days.append(day)
            end = daily.end_of(day, rules.zone)
            before, after = around(meter.id, end, store, seams)
            if before is None or before.at < at:
                continue
            found = daily.border(
                end, before, after, opening, cadence=meter.cadence, max_estimated=timedelta(0), on_gap="hold"
            )
            if not isinstance(found, Border):
                continue
            store.days.hold([Held(meter.id, one, "held", reason) for one in days], found, now)
            log.error("days_held", meter=meter.id, first=str(days[0]), last=str(day), reason=reason)
            return ""
        return f"{reason}. These days will be held; ask the platforms, then: heliograph release"

    def _anew(self, meter: Meter, told: Sequence[Told], store: Store, now: datetime) -> str:
        """Nothing is known here any more: the running total goes on from the newest one that a platform holds."""
        first = store.readings.first_good(meter.id)
        if first is None or first.index_wh is None or first.id is None:
            return "the meter has not been read since"
        newest: tuple[date, int, str] | None = None
        for one in told:
            for day, found in one.found.items():
                if isinstance(found, Unknown):
                    return f"{one.uplink}, {day}: {found.verdict.text}"
                if isinstance(found, Stored) and found.total_wh is not None and (newest is None or day > newest[0]):
                    newest = (day, found.total_wh, one.uplink)
        if newest is not None:
            day, total, name = newest
            text = (
                f"the running total goes on from {kwh(total)} kWh, which {name} holds for {day}; the time since is lost"
            )
            store.journal.event(now, "restored", meter.id, text)
            log.error("total_taken_over", meter=meter.id, what=text)
            index = continuous(store.seams.all(meter.id), first.moment.at, first.index_wh)
            start = Border(first.moment.at, index, total, "start", first.id, None)
            store.days.commission(meter.id, start, now, text)
        return ""


def _ask(uplink: Uplink, rows: tuple[DayRow, ...], clock: Clock, pace: Pace, at: datetime) -> Heard:
    found: dict[date, ReadBack] = {}
    trouble = ""
    for first in range(0, len(rows), ASKED):
        part = rows[first : first + ASKED]
        told = uplink.ask(part)
        pace.heed(told.values())
        found |= {row.day: told[row.id] for row in part if row.id in told}
        for row in part:
            answer = told.get(row.id)
            if answer is None:
                trouble = trouble or "it did not answer for all days"
            elif isinstance(answer, Unknown) and answer.verdict.state != "held":
                trouble = trouble or answer.verdict.text or answer.verdict.rule
        if trouble:
            break
    now = clock.now()
    again = (
        delivery.next_look(at, now) if trouble or (_absent(found) and now - at < uplink.absent_after) else now + SELDOM
    )
    return Heard(rows, found, now, uplink.ordered, uplink.absent_after, trouble, again)


def _absent(found: Mapping[date, ReadBack]) -> bool:
    return any(isinstance(answer, Missing) for answer in found.values())


def _believed(heard: Heard, at: datetime) -> datetime | None:
    """From when on "nothing" is believed, while that lies ahead of what was heard."""
    believed = at + heard.absent_after
    return believed if _absent(heard.found) and heard.at < believed else None
