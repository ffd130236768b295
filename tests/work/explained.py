"""A meter's week in which everything happens that has to be explained, as the daemon would have stored it."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from heliograph import library
from heliograph.core import daily
from heliograph.core.decode import shortest_float32
from heliograph.core.delivery import Verdict
from heliograph.core.ledger import Seam
from heliograph.core.readings import Moment, Reading, Source
from heliograph.core.site import Meter, Report
from heliograph.store import Store
from heliograph.uplink.redex import DIALECTS, Redex
from heliograph.work.amend import record_seam
from heliograph.work.close_days import close_days
from tests.fakes import RULES, SINGAPORE, START, FakeClock, a_meter

FIRST = date(2026, 3, 14)
NORMAL, SPLIT, SEAM, HELD, HELD_TOO, AFTER, MISSING, LAST, OPEN = (FIRST + timedelta(days=n) for n in range(9))
STEP = timedelta(minutes=5)
SECONDS = timedelta(seconds=12)
"""Before the full five minutes: midnight's reading is a little before midnight."""
FIRST_WH = 41_230_700
NEW_WH = 120


def week(folder: Path, *, name: str = "eastron-sdm630", meter: str = "roof") -> Meter:
    """From commissioning at eight in the morning of the first day to the afternoon of an open one."""
    loaded = library.load(name, local=None)
    one = replace(
        a_meter(meter),
        map=loaded.map,
        map_digest=loaded.digest,
        every=STEP,
        store_every=STEP,
        baseline_wh=1_500,
        reports=(Report("redex", "STR1000000033862740"),),
    )
    clock, store = FakeClock(), Store.writer(folder)
    store.readings.begin("sg-0042", "Asia/Singapore", "5d0c6a7e-boot", START)
    for source in loaded.sources:
        store.readings.know_map(source.digest, source.name, source.text)
    store.readings.know_meter(meter, one.production)
    store.readings.remember_serial(meter, "23451234")
    at, end = _hours(FIRST, 8) - SECONDS, _hours(OPEN, 15)
    device = FIRST_WH
    while at < end:
        at += STEP
        clock.at = at
        device += _grown(at)
        if at == _hours(SEAM, 13) - SECONDS:
            device = NEW_WH
        if not _away(at):
            store.readings.add([_reading(one, at, device, _doubt(at))])
        if at == _hours(SEAM, 15) - SECONDS:
            seam = Seam(meter, _hours(SEAM, 12.95), "swap", _last(store, meter), NEW_WH, note="lightning, by P. Tan")
            record_seam(one, replace(seam, new_serial="23459999"), store, at)
        if at.minute == 29:
            close_days([one], store, clock, RULES)
            _send(store, clock)
    store.close()
    return one


def _hours(day: date, hours: float) -> datetime:
    return daily.start_of(day, SINGAPORE) + timedelta(hours=hours)


def _grown(at: datetime) -> int:
    """Wh of five minutes under a sun that clouds pass, with a little at night: inverters measure that too."""
    if _hours(AFTER, 20) < at < _hours(LAST, 7.1):
        return 0
    hour = at.astimezone(SINGAPORE).hour + at.minute / 60
    sun = max(0.0, math.sin((hour - 7) / 12 * math.pi)) if 7 < hour < 19 else 0.0
    cloud = 0.75 + 0.25 * math.sin(at.timestamp() / 2000) * math.sin(at.timestamp() / 777)
    return int(40_000 * sun * cloud / 12) or 3


def _away(at: datetime) -> bool:
    """The gateway has no power: over a midnight for an hour and a half, for 30 hours, and for a whole quiet day."""
    return (
        _hours(SPLIT, 23.2) < at < _hours(SEAM, 0.9)
        or _hours(HELD, 11) < at < _hours(HELD_TOO, 17)
        or _hours(NORMAL, 13) < at < _hours(NORMAL, 13.6)
        or _hours(AFTER, 20) < at < _hours(LAST, 7)
    )


def _doubt(at: datetime) -> str:
    if _hours(SEAM, 13) - SECONDS <= at < _hours(SEAM, 15):
        return "energy_export fell, and stayed there"
    return ""


def _last(store: Store, meter: str) -> int:
    last = store.readings.last_good(meter)
    assert last is not None and last.index_wh is not None
    return last.index_wh


def _reading(meter: Meter, at: datetime, wh: int, doubt: str) -> Reading:
    raw = struct.pack(">f", wh / 1000)
    words = struct.unpack(">2H", raw)
    index = int(shortest_float32(struct.unpack(">f", raw)[0]) * Decimal(1000))
    moment = Moment(at, "5d0c6a7e-boot", (at - START).total_seconds() + 90.25, True)
    if not doubt and at + SECONDS in (_hours(NORMAL, 10), _hours(SEAM, 10)):
        doubt, index = f"energy_export fell from {index} to 7340 Wh", 7340
        words = struct.unpack(">2H", struct.pack(">f", 7.34))
    source = Source(1, "input", 0x4A, 2, meter.map_digest)
    return Reading(meter.id, moment, index, {"frequency": 50.0}, words, source, doubt)


def _send(store: Store, clock: FakeClock) -> None:
    """As the uplink would, but nothing leaves."""
    redex = Redex("redex", None, DIALECTS["grouped-2024"], None, clock.now)  # type: ignore[arg-type]  # only packs
    rows = store.outbox.candidates("redex", clock.now(), ordered=False, limit=10)
    if (parcel := redex.pack(rows)) is None:
        return
    store.outbox.claim("redex", parcel, clock.now(), clock.now())
    taken = Verdict("accepted", "R201", process_id="20745")
    store.outbox.settle([(row.id, taken, clock.now()) for row in parcel.rows], clock.now())
    read = Verdict("confirmed", "read-back")
    store.outbox.settle([(row.id, read, clock.now()) for row in parcel.rows], clock.now())
