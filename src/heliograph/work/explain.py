"""Walks a figure back to the register words it came from, from stored rows alone."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import Any

from heliograph.core.daily import METHODS, Border, Day
from heliograph.core.decode import Absent, addresses, value
from heliograph.core.figures import kwh
from heliograph.core.readings import Reading
from heliograph.core.site import Meter
from heliograph.store import Store
from heliograph.work.close_days import estimated_wh


def explain(meter: Meter, day: date, store: Store) -> dict[str, Any]:
    """Everything known about one day of one meter; `state` is closed, held, missing or open."""
    closed = store.days.one(meter.id, day)
    found: dict[str, Any] = {"meter": meter.id, "day": day, "serial": store.readings.serial(meter.id)}
    if closed is None:
        held = next((entry for entry in store.days.held(meter.id) if entry.day == day), None)
        return {**found, "state": held.kind if held else "open", "reason": held.reason if held else ""}
    facts = store.days.facts(meter.id, day) or {}
    opening, closing = closed.opening, closed.closing
    over = ", both reckoned on over the seams before" if store.seams.all(meter.id) else ""
    return {
        **found,
        "state": "closed",
        "period_wh": closed.period_wh,
        "total_wh": closed.total_wh,
        "formula": (
            f"{kwh(closed.period_wh)} kWh = {kwh(closing.index_wh)} - {kwh(opening.index_wh)} "
            f"(counter at the end minus counter at the start{over})"
        ),
        "total_formula": (
            f"{kwh(closed.total_wh)} kWh = {kwh(opening.total_wh)} + {kwh(closed.period_wh)} "
            f"(running total of the day before plus this day)"
        ),
        "estimated_split": closed.estimated,
        "estimated_wh": estimated_wh(closed, store, store.seams.all(meter.id)),
        "closed_at": facts.get("closed_at"),
        "software": facts.get("software"),
        "opening": _border(opening, meter, store),
        "closing": _border(closing, meter, store),
        "recovered": [event["text"] for event in store.journal.about("recovered", f"{meter.id} {day}")],
        "seams": [str(seam) for seam in store.seams.all(meter.id) if opening.at < seam.at <= closing.at],
        "samples": _samples(closed, meter, store),
        "submissions": _submissions(meter, day, store),
    }


def _border(border: Border, meter: Meter, store: Store) -> dict[str, Any]:
    return {
        "at": border.at,
        "index_wh": border.index_wh,
        "total_wh": border.total_wh,
        "method": border.method,
        "how": METHODS[border.method],
        "before": _reading(store.readings.reading(border.before), meter),
        "after": _reading(store.readings.reading(border.after), meter) if border.after is not None else None,
    }


def _reading(reading: Reading, meter: Meter) -> dict[str, Any]:
    source = reading.source
    found: dict[str, Any] = {
        "at": reading.moment.at,
        "boot": reading.moment.boot_id,
        "since_boot_s": reading.moment.since_boot,
        "clock_trusted": reading.moment.trusted,
        "index_wh": reading.index_wh,
        "doubt": reading.doubt,
        "words": [f"{word:04X}" for word in reading.words],
        "source": str(source) if source else "",
        "map_digest": source.map_digest if source else "",
        "decoding": "",
    }
    if source is None or source.map_digest != meter.map_digest:
        return found
    register = next((r for r in meter.map.registers if r.quantity == meter.production), None)
    if register is None:
        return found
    at = {source.address + offset: word for offset, word in enumerate(reading.words)}
    if not set(addresses(register)) <= set(at):
        return found
    words = [at[address] for address in addresses(register)]
    order = meter.map.order_of(register)
    factors = {name: Decimal(str(number)) for name, number in meter.factors}
    factors |= {name: Decimal(str(reading.values[name])) for name in register.times if name in reading.values}
    exponent = None
    if register.scale_register is not None and register.scale_register in at:
        exponent = at[register.scale_register] - (at[register.scale_register] >> 15 << 16)
    shown = value(register, order, words, exponent=exponent, factors=factors)
    if not isinstance(shown, Absent):
        raw = " ".join(f"{word:04X}" for word in words)
        place = ", ".join(f"0x{address:04X}" for address in register.addresses or addresses(register)[:1])
        found["decoding"] = (
            f"{meter.production} at {place}: {raw} as {register.type} {order} = {shown} {register.unit}"
            f"{''.join(f' x {name} {factors[name]}' for name in register.times if name in factors)},"
            f" floored to {reading.index_wh} Wh"
        )
    return found


def _samples(day: Day, meter: Meter, store: Store) -> dict[str, Any]:
    last = day.closing.after if day.closing.after is not None else day.closing.before
    rows = [
        reading
        for reading in store.readings.between(meter.id, day.opening.before, last)
        if day.opening.at <= reading.moment.at < day.closing.at
    ]
    good = [reading for reading in rows if reading.good]
    gaps = [(b.moment.at - a.moment.at).total_seconds() for a, b in pairwise(good)]
    return {
        "stored": len(rows),
        "good": len(good),
        "excluded": [
            {"at": r.moment.at, "index_wh": r.index_wh, "why": r.doubt or "absent"} for r in rows if not r.good
        ],
        "first": good[0].moment.at if good else None,
        "last": good[-1].moment.at if good else None,
        "longest_gap_s": max(gaps, default=None),
    }


def _submissions(meter: Meter, day: date, store: Store) -> list[dict[str, Any]]:
    found = []
    for row in store.outbox.shown(meter=meter.id, day=day):
        path = store.outbox.claim_body(row["claim"])[0] if row["claim"] is not None else ""
        found.append({**{key: row[key] for key in _SUBMISSION}, "path": path})
    return found


_SUBMISSION = (
    "uplink",
    "remote_id",
    "state",
    "attempt",
    "claimed_at",
    "changed",
    "process_id",
    "rule",
    "answer",
    "claim",
)
