"""Closes local days: finds the border at each midnight, makes the day, and queues it, all in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import structlog

from heliograph.core import daily
from heliograph.core.daily import Border, Day, Gap, Held, OnGap
from heliograph.core.daylight import Position
from heliograph.core.errors import HeliographError, StoreFault
from heliograph.core.figures import kwh
from heliograph.core.ledger import Seam, continuous
from heliograph.core.site import Meter
from heliograph.ports import Clock
from heliograph.store import Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rules:
    zone: ZoneInfo
    after: timedelta
    max_estimated: timedelta
    on_gap: OnGap
    position: Position | None = None
    """Where it is known, gaps are split along daylight."""


def close_days(meters: Sequence[Meter], store: Store, clock: Clock, rules: Rules) -> None:
    """Closes what can be closed now. On an untrusted clock nothing is; one meter's trouble stops no other."""
    if not clock.trusted():
        return
    dated = store.readings.date_back(clock.boot_id, clock.now(), clock.since_boot())
    if dated:
        log.info("readings_dated", readings=dated)
    for meter in meters:
        try:
            while _close_next(meter, store, clock.now(), rules):
                pass
        except StoreFault:
            raise  # concerns every meter, and is told once
        except HeliographError as error:
            log.error("close_failed", meter=meter.id, error=error.message, hint=error.hint)


def _close_next(meter: Meter, store: Store, now: datetime, rules: Rules) -> bool:
    """Closes the next day of a meter, or holds the next few; False when nothing can be decided yet."""
    opening = store.days.last_border(meter.id)
    if opening is None:
        return commission(meter, store, now)
    held: list[tuple[Held, Gap]] = []
    seams = store.seams.all(meter.id)
    newest = store.readings.last_good(meter.id)
    for day in daily.days_between(opening.at, now - rules.after, rules.zone):
        end = daily.end_of(day, rules.zone)
        if newest is not None and newest.moment.trusted and max(newest.moment.at, opening.at) < end - meter.cadence:
            return False  # a doubt may last for weeks, and looking behind all its readings each time would cost much
        before, after = around(meter.id, end, store, seams)
        if before is None:
            return False
        found = daily.border(
            end,
            daily.base(before, opening),
            after,
            opening,
            cadence=meter.cadence,
            max_estimated=rules.max_estimated,
            on_gap=rules.on_gap,
            position=rules.position,
        )
        if isinstance(found, Border) and found.total_wh < opening.total_wh:
            raise HeliographError(
                f"{meter.id} {day}: the counter would end {kwh(opening.index_wh - found.index_wh)} kWh below its start",
                hint=f"A seam must be wrong: heliograph explain {meter.id} {day}, then heliograph swap --corrects",
            )
        match found:
            case Border() if held:
                last = Held(meter.id, day, "held", held[-1][1].reason)
                store.days.hold([*(entry for entry, _ in held), last], found, now)
                log.warning("days_held", meter=meter.id, first=str(held[0][0].day), last=str(day), reason=last.reason)
                return True
            case Border() if found.method == "still" and before.reading <= opening.before:
                missing = Held(meter.id, day, "missing", "no reading on this day; the counter had not moved after it")
                store.days.hold([missing], found, now)
                log.warning("day_missing", meter=meter.id, day=str(day))
                return True
            case Border():
                closed = Day(meter.id, day, opening, found)
                store.days.close(closed, now, meter.reports)
                log.info("day_closed", meter=meter.id, day=str(day), kwh=kwh(closed.period_wh), how=found.method)
                return True
            case Gap():
                held.append((Held(meter.id, day, "held", found.reason), found))
            case _:
                return False
    return False


def around(
    meter: str, at: datetime, store: Store, seams: Sequence[Seam]
) -> tuple[daily.Index | None, daily.Index | None]:
    """The last good index at or before `at` and the first one after it, both on the continuous counter."""
    before, after, _ = store.readings.around(meter, at)

    def over_seams(index: daily.Index | None) -> daily.Index | None:
        return replace(index, wh=continuous(seams, index.at, index.wh)) if index is not None else None

    return over_seams(before), over_seams(after)


def estimated_wh(day: Day, store: Store) -> int:
    """How many Wh of a closed day only an estimated split gave to it."""
    index_of: dict[int, int] = {}
    for border, id in ((day.opening, day.opening.after), (day.closing, day.closing.before)):
        reading = store.readings.reading(id) if id is not None and day.estimated else None
        if reading is not None and reading.id is not None and reading.index_wh is not None:
            seams = store.seams.all(day.meter, by=store.days.made(border))
            index_of[reading.id] = continuous(seams, reading.moment.at, reading.index_wh)
    return daily.estimated_wh(day, index_of)


def commission(meter: Meter, store: Store, now: datetime) -> bool:
    """The first good reading opens the first day; what the counter showed before it is not ours."""
    first = store.readings.first_good(meter.id)
    if first is None or first.index_wh is None or first.id is None:
        return False
    index = continuous(store.seams.all(meter.id), first.moment.at, first.index_wh)
    start = Border(first.moment.at, index, meter.baseline_wh, "start", first.id, None)
    store.days.commission(meter.id, start, now)
    log.info("meter_commissioned", meter=meter.id, index_kwh=kwh(first.index_wh), total_kwh=kwh(meter.baseline_wh))
    return True
