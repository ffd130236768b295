"""Compares what was delivered with what the platform holds. A difference is an event and an alarm, never a change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import structlog

from heliograph.core.delivery import Missing, Stored
from heliograph.core.figures import kwh
from heliograph.ports import Clock, Uplink
from heliograph.store import Store
from heliograph.work.deliver import Pace

log = structlog.get_logger()

# How far back a weekly comparison looks; REDEX answers at most three months at once.
LOOK_BACK = timedelta(days=60)


@dataclass(frozen=True, slots=True)
class Compared:
    """Confirmed days of one meter at one platform: our sum, theirs, in Wh, and the days that differ."""

    meter: str
    days: int
    local_wh: int
    platform_wh: int
    differing: tuple[str, ...]


def reconcile(uplink: Uplink, store: Store, clock: Clock, pace: Pace) -> list[Compared]:
    """One comparison per meter, as far as the pace allows."""
    if not clock.trusted():
        return []
    now = clock.now()
    found = []
    # Where days go strictly in order, a request is one read: days that shared it are held as their sum.
    for meter, rows in store.outbox.confirmed(uplink.name, (now - LOOK_BACK).date(), whole=uplink.ordered).items():
        if not pace.open(clock.now()):
            break
        before = uplink.requests
        held = uplink.ask(rows)
        pace.count(clock.now(), uplink.requests - before)
        local = platform = days = 0
        differing = []
        for row in rows:
            match held.get(row.id):
                case Stored(period_wh=period, total_wh=total):
                    days += 1
                    local += row.period_wh
                    platform += row.period_wh if period is None else period
                    if (period is not None and period != row.period_wh) or (
                        total is not None and total != row.total_wh
                    ):
                        differing.append(str(row.day))
                case Missing():
                    days += 1
                    local += row.period_wh
                    differing.append(str(row.day))
                case _:
                    continue
        found.append(Compared(meter, days, local, platform, tuple(differing)))
        if differing:
            text = (
                f"{uplink.name} holds {kwh(platform)} kWh where we delivered {kwh(local)} kWh: {', '.join(differing)}"
            )
            store.journal.event(now, "differs", meter, text)
            log.error(
                "reconcile_differs", uplink=uplink.name, meter=meter, text=text, hint="heliograph explain METER DAY"
            )
    return found
