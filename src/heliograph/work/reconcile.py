"""Compares what was delivered with what the platform holds. A difference is an event and an alarm, never a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby

import structlog

from heliograph.core.delivery import DayRow, Missing, ReadBack, Stored
from heliograph.core.figures import kwh
from heliograph.ports import Clock, Uplink
from heliograph.store import Store
from heliograph.work.deliver import Pace

log = structlog.get_logger()

# How far back a weekly comparison looks; REDEX answers at most three months at once.
LOOK_BACK = timedelta(days=60)
# The part of a minute's requests that must be free, so that comparing never keeps a day from being delivered.
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Compared:
    """Confirmed days of one meter and month at one platform, in Wh, and the days that differ."""

    uplink: str
    meter: str
    month: str
    """Such as 2026-03, of the local days."""
    days: int
    """Days about which the platform gave an answer."""
    unanswered: int
    local_wh: int
    platform_wh: int
    differing: tuple[str, ...]

    @property
    def difference_wh(self) -> int:
        """Theirs minus ours."""
        return self.platform_wh - self.local_wh


def reconcile(
    uplink: Uplink, store: Store, clock: Clock, pace: Pace, stopping: Callable[[], bool] = lambda: False
) -> list[Compared]:
    """The last two months of every meter, until the platform asks for a pause."""
    if not clock.trusted():
        return []
    found = []
    for meter in delivered(uplink, store, (clock.now() - LOOK_BACK).date()):
        while pace.open() and uplink.room() < SHARE and not stopping():
            clock.sleep(clock.rate)
        if stopping() or not pace.open():
            break
        found += compare(uplink, store, clock, pace, meter, (clock.now() - LOOK_BACK).date())
    return found


def delivered(uplink: Uplink, store: Store, first: date) -> list[str]:
    """Meters with confirmed days from a day on."""
    return list(store.outbox.confirmed(uplink.name, first, whole=uplink.ordered))


def compare(uplink: Uplink, store: Store, clock: Clock, pace: Pace, meter: str, first: date) -> list[Compared]:
    """One meter from a day on, a row a month. Days that a pause leaves no answer for count as unanswered."""
    # Where days go strictly in order, a request is one read: days that shared it are held as their sum.
    rows = store.outbox.confirmed(uplink.name, first, whole=uplink.ordered).get(meter, [])
    told: dict[int, ReadBack] = {}
    left = rows
    while left and pace.open():
        some = uplink.ask(left)  # an uplink answers about as many as it may ask at once
        if not some:
            break
        pace.heed(some.values())
        told |= some
        left = [row for row in left if row.id not in some]
    found = [
        _compared(uplink.name, meter, month, list(group), told)
        for month, group in groupby(rows, key=lambda row: row.day.isoformat()[:7])
    ]
    for one in found:
        if one.differing:
            text = (
                f"{uplink.name} holds {kwh(one.platform_wh)} kWh in {one.month} where we delivered"
                f" {kwh(one.local_wh)} kWh: {', '.join(one.differing)}"
            )
            store.journal.event(clock.now(), "differs", meter, text)
            hint = "heliograph explain METER DAY"
            log.error("reconcile_differs", uplink=uplink.name, meter=meter, text=text, hint=hint)
    return found


def _compared(uplink: str, meter: str, month: str, rows: Sequence[DayRow], told: Mapping[int, ReadBack]) -> Compared:
    local = platform = days = 0
    differing = []
    for row in rows:
        match told.get(row.id):
            case Stored(period_wh=period, total_wh=total):
                days += 1
                local += row.period_wh
                platform += row.period_wh if period is None else period
                if (period is not None and period != row.period_wh) or (total is not None and total != row.total_wh):
                    differing.append(str(row.day))
            case Missing():
                days += 1
                local += row.period_wh
                differing.append(str(row.day))
            case _:
                continue
    return Compared(uplink, meter, month, days, len(rows) - days, local, platform, tuple(differing))
