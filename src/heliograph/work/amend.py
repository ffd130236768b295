"""What a person decides about a counter: that another one took over, or how the energy of a gap is split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Literal

from heliograph.core import daily
from heliograph.core.daily import Border, Day
from heliograph.core.errors import UsageError
from heliograph.core.ledger import Seam, Step, settled
from heliograph.core.plausible import step_wh
from heliograph.core.site import Meter
from heliograph.store import Store
from heliograph.work.close_days import Rules, around

Split = Literal["time", "carry"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A seam and what it settled."""

    seam: Seam
    readings: int
    """Doubtful readings it explains."""


def record_seam(meter: Meter, seam: Seam, store: Store, now: datetime, *, dry: bool = False) -> Recorded:
    """Records where one counter handed over to the next; refuses what the readings contradict.

    It may lie in the past as long as no day it touches is closed. With `dry` nothing is written.
    """
    border = store.days.last_border(meter.id)
    if border is not None and seam.at <= border.at:
        raise UsageError(
            f"{meter.id} is closed up to {border.at:%Y-%m-%d %H:%M} UTC, and a closed day never changes",
            hint="Name a moment after that.",
        )
    if seam.at > now:
        raise UsageError(f"{seam.at:%Y-%m-%d %H:%M} UTC is still to come", hint="Record it when it has happened.")
    if seam.kind == "swap" and seam.new_serial is None and store.readings.serial(meter.id) is not None:
        raise UsageError(
            f"the old meter's serial number is known ({store.readings.serial(meter.id)}), the new one's is not named",
            hint="Add --new-serial; it stands on the meter.",
        )
    steps = [
        Step(reading.moment.at, reading.index_wh, reading.good, reading.id)
        for reading in store.readings.since(meter.id, seam.at)
        if reading.index_wh is not None and reading.id is not None
    ]
    register = meter.map.register(meter.production)
    step = step_wh(register, max(seam.old_wh, seam.new_wh)) if register is not None else 1
    found = settled(steps, seam, meter.rated_kw, step)
    if isinstance(found, str):
        raise UsageError(f"this seam does not fit the readings: {found}", hint="Correct the moment or the counters.")
    complete = replace(seam, old_serial=seam.old_serial or store.readings.serial(meter.id))
    if not dry:
        store.seams.record(complete, found, now)
    return Recorded(complete, len(found))


def release(
    meter: Meter, first: date, last: date, split: Split, store: Store, now: datetime, rules: Rules, *, dry: bool = False
) -> list[Day]:
    """Gives held days a figure by splitting the measured energy of their gap; the split is marked as estimated."""
    held = {entry.day for entry in store.days.held(meter.id) if entry.kind == "held"}
    span = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    if missing := [day for day in span if day not in held]:
        known = ", ".join(map(str, sorted(held))) or "none"
        raise UsageError(f"{meter.id} {missing[0]} is not held", hint=f"Held: {known}")
    opening = store.days.border_at(meter.id, daily.start_of(first, rules.zone))
    start = store.days.first_border(meter.id)
    if opening is None and start is not None and daily.day_of(start.at, rules.zone) == first:
        opening = start
    if opening is None:
        raise UsageError(
            f"{meter.id}: where {first} begins is not known before the held days in front of it are released",
            hint=f"Begin with {min(held)}.",
        )
    days = _split(meter, span, opening, split, store, rules)
    if not dry:
        store.days.release(
            days, now, meter.reports, f"split by {split}" if split == "time" else "carried to the later day"
        )
    return days


def _split(meter: Meter, span: Sequence[date], opening: Border, split: Split, store: Store, rules: Rules) -> list[Day]:
    seams = store.seams.all(meter.id)
    days: list[Day] = []
    for day in span:
        end = daily.end_of(day, rules.zone)
        closing = store.days.border_at(meter.id, end)
        if closing is None:
            before, after = around(meter.id, end, store, seams)
            if before is None:
                raise UsageError(f"{meter.id}: no reading before {end:%Y-%m-%d %H:%M} UTC", hint="heliograph days")
            found = daily.border(
                end,
                before,
                after,
                opening,
                cadence=meter.cadence,
                max_estimated=rules.max_estimated,
                on_gap="split" if split == "time" else "carry",
            )
            if not isinstance(found, Border):
                raise UsageError(f"{meter.id}: no reading after {day} yet", hint="heliograph status")
            closing = found
        days.append(Day(meter.id, day, opening, closing))
        opening = closing
    return days


def carry_out(
    meter: Meter, what: str, wish: Mapping[str, Any], store: Store, now: datetime, rules: Rules
) -> dict[str, Any]:
    """What a verb asks for, as it comes over the daemon's socket; raises KeyError for what is not known."""
    if what == "seam":
        seam = Seam(
            meter.id,
            datetime.fromisoformat(wish["at"]),
            wish["kind"],
            int(wish["old_wh"]),
            int(wish["new_wh"]),
            new_serial=wish["new_serial"],
            note=wish["note"],
        )
        recorded = record_seam(meter, seam, store, now, dry=wish["dry"])
        return {"meter": meter.id, "seam": str(recorded.seam), "readings": recorded.readings}
    if what == "release":
        first, last = date.fromisoformat(wish["first"]), date.fromisoformat(wish["last"])
        days = release(meter, first, last, wish["split"], store, now, rules, dry=wish["dry"])
        return {"meter": meter.id, "days": [{"day": str(day.day), "period_wh": day.period_wh} for day in days]}
    raise KeyError(what)
