"""Field reports of other gateways, through the whole booking: bus, judge, store, closing. 0 kWh are booked wrongly.

Late RTU answers (180.2 -> 5000 -> 180.4), rounding (215.7 -> 215.6 -> 215.7), dormant inverters that show zeros,
replaced boards (407.8 -> 6.8 for good), and a float32 counter above 131,072 kWh, which moves by 15.6 Wh at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from heliograph.core.decode import shortest_float32
from heliograph.core.ledger import Seam
from heliograph.core.registers import Function
from heliograph.core.site import Meter
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.store import Store
from heliograph.work.amend import record_seam
from heliograph.work.close_days import close_days
from tests.fakes import RULES, START, FakeClock, a_meter, in_memory, slower
from tests.work.test_poll import Site

EVERY = timedelta(minutes=10)
Display = Callable[[float], float]
"""kWh by hours since the first midnight."""


@pytest.fixture
def quick() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


class Shown(SimulatedMeter):
    """A meter whose export counter shows what the case says, as a float32; everything else lives on."""

    display: Display

    def words(
        self, function: Function, address: int, count: int, at: datetime | None = None
    ) -> tuple[int, ...] | Refusal:
        found = super().words(function, address, count, at)
        if at is None or isinstance(found, Refusal) or function != "input" or not address <= 0x4A < address + count - 1:
            return found
        words = struct.unpack(">2H", struct.pack(">f", self.display((at - START) / timedelta(hours=1))))
        inside = 0x4A - address
        return (*found[:inside], *words, *found[inside + 2 :])


def lived(folder: Path, display: Display, days: int = 3, meter: Meter | None = None) -> Site:
    """Polls every ten minutes from six in the morning on, closing days as they end."""
    meter = slower(meter or a_meter(), EVERY)
    site = Site(folder, [meter])
    site.clock.at = START + timedelta(hours=6)
    device = Shown(meter.map, clock=site.clock.now, unit=1, sky=site.devices[1].sky, seed=1)
    device.display = display
    site.devices[1] = device
    end = START + timedelta(days=days, minutes=30)
    while site.clock.now() < end:
        due = site.clock.now() + EVERY
        site.round()
        close_days(site.meters, site.store, site.clock, RULES)
        site.clock.leap(seconds=max(0.0, (due - site.clock.now()).total_seconds()))
    return site


def sunny(first_kwh: float, per_day: float) -> Display:
    """A counter that moves from seven in the morning to half past six in the evening only."""

    def shown(hours: float) -> float:
        day, hour = divmod(hours, 24)
        return first_kwh + per_day * (day + min(max((hour - 7) / 11.5, 0.0), 1.0))

    return shown


def wh(display: Display, at: datetime) -> int:
    single = struct.unpack(">f", struct.pack(">f", display((at - START) / timedelta(hours=1))))[0]
    return int((shortest_float32(single) * Decimal(1000)).to_integral_value(ROUND_FLOOR))


def check(store: Store, truth: Display) -> list[int]:
    """Every border shows what the true counter showed at its reading, so every period is true to the Wh."""
    days = store.days.all()
    for day in days:
        for border in (day.opening, day.closing):
            if border.method in ("read", "start", "still"):
                assert border.index_wh == wh(truth, store.readings.reading(border.before).moment.at)
    assert all(b.opening.id == a.closing.id for a, b in pairwise(days))
    first = store.days.first_border("roof")
    last = store.days.last_border("roof")
    assert first is not None and last is not None and last.total_wh == last.index_wh - first.index_wh
    return [day.period_wh for day in days]


def strange(store: Store) -> list[str]:
    return [reading.doubt for reading in store.readings.back("roof") if not reading.good]


def glitch(truth: Display, shown: float, *windows: tuple[float, float]) -> Display:
    return lambda hours: shown if any(start <= hours < end for start, end in windows) else truth(hours)


@pytest.mark.parametrize("midnight", [False, True])
@pytest.mark.parametrize(
    ("first_kwh", "per_day", "shown", "says"),
    [
        (180.2, 12.0, 5000.0, "moved by"),
        (215.7, 0.1, 215.6, "fell"),
        (215.7, 12.0, 215.6, "fell"),
        (12_448.0, 30.0, 12.448, "fell"),
    ],
)
def test_a_wrong_value_for_a_while_books_nothing(
    quick: Path, first_kwh: float, per_day: float, shown: float, says: str, midnight: bool
) -> None:
    """By day, or right over a midnight, where the day's border would rest on it."""
    truth = sunny(first_kwh, per_day)
    site = lived(quick, glitch(truth, shown, (23.8, 24.2) if midnight else (33.0, 33.3)))
    assert check(site.store, truth) == pytest.approx([1000 * per_day] * 3, abs=1)
    assert strange(site.store) and all(says in doubt for doubt in strange(site.store))
    assert not any(day.estimated for day in site.store.days.all())
    site.store.close()


@pytest.mark.parametrize("window", [(22.0, 30.5), (19.0, 31.0)])
def test_a_lifetime_counter_that_reads_zero_at_night_books_nothing(quick: Path, window: tuple[float, float]) -> None:
    """12,448 -> 0 -> 12,448 over a night; and from sunset to sunrise, every night."""
    truth = sunny(12_448.0, 30.0)
    nights = [(start + 24 * day, end + 24 * day) for day in (0, 1, 2) for start, end in [window]]
    site = lived(quick, glitch(truth, 0.0, *nights))
    assert check(site.store, truth) == [30_000] * 2
    assert [day.closing.method for day in site.store.days.all()] == ["still"] * 2  # the third waits for its morning
    assert strange(site.store) and all("reads 0" in doubt for doubt in strange(site.store))
    site.store.close()


@pytest.mark.parametrize("known", [True, False])
def test_a_meter_that_is_met_asleep_books_nothing_before_it_is_understood(quick: Path, known: bool) -> None:
    """Commissioned while it reads zero. A map that knows such zeros waits for the morning; for any other meter zero is
    where a new counter begins: what leaps from there to 12,448 kWh is in doubt until a person says what happened."""
    meter, truth = a_meter(), sunny(12_448.0, 30.0)
    registers = tuple(replace(one, zero_is_absent=known) for one in meter.map.registers if "energy" in one.quantity)
    others = tuple(one for one in meter.map.registers if "energy" not in one.quantity)
    meter = replace(meter, map=replace(meter.map, registers=(*registers, *others)))
    site = lived(quick, glitch(truth, 0.0, (0.0, 6.5), (22.0, 30.5)), 2, meter)
    assert [day.period_wh for day in site.store.days.all()] == ([30_000, 30_000] if known else [0])
    border = site.store.days.last_border("roof")
    assert border is not None and border.total_wh == (60_000 if known else 0)
    site.store.close()


def test_a_counter_that_wakes_up_with_a_little_more_is_held_until_somebody_says_how(quick: Path) -> None:
    truth = sunny(12_448.0, 30.0)
    site = lived(quick, glitch(truth, 0.0, (18.25, 31.5)))
    held = site.store.days.held("roof")
    assert [entry.day.day for entry in held] == [14, 15] and "while the counter moved " in held[0].reason
    assert check(site.store, truth) == [30_000]
    border = site.store.days.last_border("roof")
    assert border is not None and border.total_wh == 90_000  # nothing is lost behind it
    site.store.close()


def test_a_counter_that_falls_for_good_books_nothing_until_a_person_says_what_happened(quick: Path) -> None:
    truth = sunny(400.0, 7.8)
    site = lived(quick, lambda hours: truth(hours) if hours < 24 + 22 else 6.8 + (hours - 46) / 100, days=5)
    assert check(site.store, truth) == [7800]
    newest = site.store.readings.last_good("roof")
    assert newest is not None and newest.index_wh == wh(truth, newest.moment.at) == 415_600
    assert all("fell" in doubt for doubt in strange(site.store))
    at = newest.moment.at + timedelta(minutes=2)
    record_seam(site.meters[0], Seam("roof", at, "reset", 415_600, 6_800), site.store, site.clock.now())
    close_days(site.meters, site.store, site.clock, RULES)
    days = site.store.days.all()
    assert [day.day.day for day in days] == [14, 15, 16, 17, 18]
    # From ten in the evening on the new counter moves by 10 Wh an hour.
    assert [day.period_wh for day in days] == pytest.approx([7800, 7820, 240, 240, 240], abs=2)
    assert days[-1].total_wh == sum(day.period_wh for day in days)
    site.store.close()


def test_a_coarse_float_is_booked_as_it_is_shown(quick: Path) -> None:
    truth = sunny(131_100.0, 300.0)
    site = lived(quick, truth)
    periods = check(site.store, truth)
    assert strange(site.store) == []
    assert len(periods) == 3 and sum(periods) == 900_000 and all(abs(one - 300_000) < 16 for one in periods)
    site.store.close()


def test_a_store_that_believes_everything_would_be_seen(quick: Path) -> None:
    """The negative control: the same five thousand, stored as if it had been believed, fails the check."""
    truth = sunny(180.2, 12.0)
    site = lived(quick, glitch(truth, 5000.0, (23.8, 24.2)))
    site.store.close()
    (quick / "again").mkdir()
    store = Store.writer(quick / "again")
    store.readings.begin("site", "Asia/Singapore", "boot-1", START)
    store.readings.know_meter("roof", "energy_export")
    old = Store.reader(quick)
    for reading in list(old.readings.back("roof"))[::-1]:
        store.readings.add([replace(reading, doubt="", source=None)])
    old.close()
    close_days([a_meter()], store, FakeClock(START + timedelta(days=3, hours=1)), RULES)
    with pytest.raises(AssertionError):
        check(store, truth)
    store.close()
