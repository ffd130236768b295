"""What stays on the card, by when it was read, and how many bytes that is: the arithmetic of deploy/README.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from heliograph.core.coverage import Coverage, Silence
from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.readings import Moment, Reading, Source
from heliograph.settings import Retention
from heliograph.store import Store
from heliograph.work.close_days import close_days
from heliograph.work.prune import prune
from tests.fakes import RULES, START, FakeClock, a_meter, in_memory

METER = a_meter()
NAMES = [register.quantity for register in METER.map.registers if register.poll][1:]
FINE, HOURLY, DAYS = timedelta(days=2), timedelta(days=6), 20
PAGE = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")


def said(pattern: str) -> float:
    """A figure of deploy/README.md."""
    found = re.search(pattern, PAGE)
    assert found is not None, pattern
    return float(found[1].replace(",", ""))


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as made:
        yield made


def size(store: Store, folder: Path) -> int:
    """Bytes in use, without what pruning has left free."""
    copy = folder / "copy.db"
    store._connection._ready(write=True).conn.execute(f"VACUUM INTO '{copy}'")
    found = copy.stat().st_size
    copy.unlink()
    return found


def lived(folder: Path, *, prunes: bool) -> Store:
    """Twenty days of a sample a minute with all quantities, closed, delivered, and thinned by a shortened retention."""
    clock, store = FakeClock(), Store.writer(folder)
    store.readings.begin("site", "Asia/Singapore", "boot-1", START)
    store.readings.know_map(METER.map_digest, METER.map.name, "x" * 8000)
    store.readings.know_meter("roof", METER.production)
    source = Source(1, "input", 0x4A, 2, METER.map_digest)
    values = {name: 230.1234 + number for number, name in enumerate(NAMES)}
    for day in range(DAYS):
        rows = []
        for minute in range(1440):
            at = START + timedelta(days=day, minutes=minute)
            moment = Moment(at, "boot-1", (at - START).total_seconds(), True)
            rows.append(Reading("roof", moment, 41_230_700 + day * 200_000 + minute, values, (1, 2), source))
        date = (START + timedelta(days=day, hours=12)).date()
        gaps = tuple(Silence(START, START + timedelta(hours=hour), "bus") for hour in (3, 2, 1))
        counts = Coverage(
            "roof", date, METER.every, {"good": 8000, "timeout": 640}, START, START, START, "timeout", gaps
        )
        store.readings.add(rows, [counts])
        clock.at = START + timedelta(days=day + 1, minutes=20)
        close_days([METER], store, clock, RULES)
        due = store.outbox.candidates("platform", clock.now(), ordered=False, limit=9)
        if due:
            store.outbox.claim("platform", Parcel("/batches", b'{"Devices":[]}' * 20, tuple(due)), clock.at, clock.at)
            store.outbox.settle([(due[0].id, Verdict("confirmed", "read-back", "x" * 60), clock.at)], clock.at)
        for _ in range(24 if prunes else 0):  # every hour, as the daemon does
            clock.leap(hours=1)
            while prune(store, clock, FINE, HOURLY):
                pass
    return store


def test_borders_stay_for_ever_hours_for_long_and_minutes_for_a_while(folder: Path) -> None:
    store = lived(folder, prunes=True)
    now = START + timedelta(days=DAYS + 1, minutes=20)
    ages: list[timedelta] = [now - reading.moment.at for reading in store.readings.back("roof")]
    days = store.days.all()
    assert len(days) == DAYS
    borders = {
        id for day in days for border in (day.opening, day.closing) for id in (border.before, border.after) if id
    }
    for id in borders:
        assert store.readings.reading(id).index_wh is not None
    fine = sum(1 for age in ages if age <= FINE)
    hourly = sum(1 for age in ages if FINE < age <= HOURLY)
    old = sum(1 for age in ages if age > HOURLY + timedelta(hours=1))
    assert 1440 - 40 <= fine <= 1440  # the last day that was read is a day old
    assert 24 * 4 <= hourly <= (24 + 1) * 4 + 2  # one an hour, and the borders
    assert old <= DAYS - 6 + 2  # one border reading a day, no more
    store.close()


def test_the_bytes_on_the_card_are_what_the_page_says(folder: Path) -> None:
    row, day = said(r"a stored reading.*\| ([\d,]+) bytes"), said(r"a closed day.*\| ([\d,]+) bytes")
    (folder / "all").mkdir()
    (folder / "kept").mkdir()
    store = lived(folder / "all", prunes=False)
    everything = size(store, folder)
    store.close()
    store = lived(folder / "kept", prunes=True)
    kept = size(store, folder)
    held = sum(1 for _ in store.readings.back("roof"))
    store.close()
    measured = (everything - kept) / (1440 * DAYS - held)
    assert 0.8 * row <= measured <= row
    empty = 220_000  # the tables themselves and the map's text
    assert kept <= held * row + DAYS * day + empty
    assert (kept - held * measured) / DAYS <= day + empty / DAYS


def test_the_page_multiplies_rightly() -> None:
    row, day = said(r"a stored reading.*\| ([\d,]+) bytes"), said(r"a closed day.*\| ([\d,]+) bytes")
    keep = Retention()
    fine = keep.fine.days * 1440 * row / 1e6
    hourly = (keep.hourly - keep.fine).days * 24 * row / 1e6
    for_ever = 365 * (day + row) / 1e6
    assert said(r"fine, .*\| ([\d.]+) MB") == pytest.approx(fine, abs=0.06)
    assert said(r"hourly, .*\| ([\d.]+) MB") == pytest.approx(hourly, abs=0.06)
    assert said(r"for ever, .*\| ([\d.]+) MB a year") == pytest.approx(for_ever, abs=0.06)
    assert said(r"Ten meters .*?([\d,]+) MB after one year") == pytest.approx(10 * (fine + hourly + for_ever), abs=3)
    assert said(r"Ten meters .*? and ([\d,]+) MB after ten") == pytest.approx(
        10 * (fine + hourly + 10 * for_ever), abs=6
    )
