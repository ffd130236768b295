from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from heliograph import library
from heliograph.core.readings import Moment, Reading, Source
from heliograph.store import Store
from heliograph.work.close_days import Rules, close_days
from heliograph.work.explain import explain
from tests.fakes import RULES, START, FakeClock, a_meter

METER = a_meter(baseline_wh=500)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = Store.writer(tmp_path)
    opened.readings.begin("site", "Asia/Singapore", clock.boot_id, clock.now())
    opened.readings.know_map(METER.map_digest, METER.map.name, "")
    opened.readings.know_meter("roof", METER.production)
    yield opened
    opened.close()


def read(store: Store, hours: float, wh: int | None, *, doubt: str = "", trusted: bool = True) -> None:
    """A stored reading of the roof, some hours after the first midnight."""
    at: datetime = START + timedelta(hours=hours)
    source = Source(1, "input", 0x48, 4, METER.map_digest)
    moment = Moment(at, "boot-1", hours * 3600, trusted)
    store.readings.add([Reading("roof", moment, wh, {}, (0, 0, 0, 0), source, doubt)])


def close(store: Store, clock: FakeClock, hours: float, rules: Rules = RULES) -> None:
    clock.at = START + timedelta(hours=hours)
    close_days([METER], store, clock, rules)


def periods(store: Store) -> dict[int, int]:
    return {day.day.day: day.period_wh for day in store.days.all()}


def test_the_day_of_commissioning_opens_at_its_first_reading(store: Store, clock: FakeClock) -> None:
    read(store, 10, 41_000)
    read(store, 23.99, 42_250)
    close(store, clock, 24.25)
    assert periods(store) == {14: 1_250}
    assert store.days.all()[0].total_wh == 500 + 1_250


def test_a_day_is_not_closed_before_its_time(store: Store, clock: FakeClock) -> None:
    read(store, 10, 41_000)
    read(store, 23.99, 42_250)
    close(store, clock, 24.24)
    assert periods(store) == {}


def test_nothing_is_closed_on_an_untrusted_clock(store: Store, clock: FakeClock) -> None:
    read(store, 10, 41_000)
    read(store, 23.99, 42_250)
    clock.synchronised = False
    close(store, clock, 30)
    assert periods(store) == {} and store.days.last_border("roof") is None


def test_neighbouring_days_share_their_border(store: Store, clock: FakeClock) -> None:
    for hour, wh in ((0, 1000), (23.98, 2000), (24.02, 2100), (47.99, 3300), (48.01, 3400)):
        read(store, hour, wh)
    close(store, clock, 48.5)
    first, second = store.days.all()
    assert first.closing == second.opening and first.closing.id == second.opening.id
    assert (first.period_wh, second.period_wh) == (1000, 1300)


def test_a_short_gap_over_midnight_is_split_by_time_and_marked(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 23.5, 2000)
    read(store, 24.5, 2101)
    close(store, clock, 25)
    day = store.days.all()[0]
    assert (day.period_wh, day.estimated, day.closing.method) == (1050, True, "split")


def test_a_long_gap_holds_the_days_it_touches_and_loses_nothing(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 20, 2000)
    read(store, 30, 2900)
    read(store, 47.99, 4000)
    read(store, 71.99, 6000)
    close(store, clock, 48.1)
    assert periods(store) == {} and store.days.held() == []  # the second day is not over
    close(store, clock, 72.5)
    assert [(held.day.day, held.kind) for held in store.days.held()] == [(14, "held"), (15, "held")]
    assert "10.0 h" in store.days.held()[0].reason
    assert periods(store) == {16: 2000}
    assert store.days.all()[0].total_wh == 500 + 6000 - 1000


def test_a_site_may_split_or_carry_instead(store: Store, clock: FakeClock) -> None:
    from dataclasses import replace

    read(store, 1, 1000)
    read(store, 20, 2000)
    read(store, 30, 3000)
    read(store, 47.99, 4000)
    close(store, clock, 48.5, replace(RULES, on_gap="carry"))
    assert periods(store) == {14: 1000, 15: 2000}
    assert all(day.estimated for day in store.days.all())


def test_a_night_without_power_is_no_gap_when_the_counter_stood_still(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 19, 5000)
    read(store, 30, 5000)
    close(store, clock, 31)
    day = store.days.all()[0]
    assert (day.period_wh, day.estimated, day.closing.method) == (4000, False, "still")


def test_a_day_without_any_reading_is_missing_and_never_zero(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 19, 5000)
    read(store, 72 + 8, 5000)
    read(store, 72 + 23.99, 7000)
    close(store, clock, 97)
    assert periods(store) == {14: 4000, 17: 2000}
    assert [(held.day.day, held.kind) for held in store.days.held()] == [(15, "missing"), (16, "missing")]
    assert [row["day"].day for row in store.outbox.backlog()] == [14, 17]


def test_a_meter_that_stays_silent_leaves_its_day_open(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 19, 5000)
    close(store, clock, 200)
    assert periods(store) == {} and store.days.held() == []


def test_doubtful_and_untrusted_readings_are_no_border(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 23.97, 5000)
    read(store, 23.98, 7, doubt="energy_export fell")
    read(store, 23.99, 9000, trusted=False)
    read(store, 24.01, 5100)
    close(store, clock, 24.5)
    assert periods(store) == {14: 4000}


def test_one_meters_trouble_stops_no_other(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 23.99, 2000)
    clock.at = START + timedelta(hours=25)
    close_days([a_meter("unknown"), METER], store, clock, RULES)
    assert periods(store) == {14: 1000}


def test_closing_again_changes_nothing(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 23.99, 2000)
    for _ in range(3):
        close(store, clock, 25)
    assert periods(store) == {14: 1000}
    assert len(store.outbox.backlog()) == 1


def test_a_figure_is_explained_from_stored_rows(store: Store, clock: FakeClock) -> None:
    read(store, 1, 1000)
    read(store, 12, 3, doubt="energy_export fell from 1000 to 3 Wh")
    read(store, 23.99, 2250)
    close(store, clock, 25)
    found = explain("roof", date(2026, 3, 14), store, clock.now(), library.from_texts)
    assert found["state"] == "closed"
    assert found["formula"].startswith("1.250 kWh = 2.250 - 1.000")
    assert found["closing"]["before"]["source"] == "unit 1, input 0x0048+4"
    assert [one["why"] for one in found["samples"]["excluded"]] == ["energy_export fell from 1000 to 3 Wh"]
    assert [one["state"] for one in found["submissions"]] == ["due"]
    assert explain("roof", date(2026, 3, 15), store, clock.now(), library.from_texts)["state"] == "open"
