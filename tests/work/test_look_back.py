"""What was stored is read back onward in time, with the running total of each moment, on a store of some size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from heliograph.core.daily import Border
from heliograph.core.ledger import Seam
from heliograph.core.readings import Moment, Reading
from heliograph.core.shown import PastSample
from heliograph.store import Store
from heliograph.work.look_back import look_back
from tests.fakes import START, a_meter, in_memory

ROOF, SHED = a_meter("roof"), a_meter("shed", unit=2)
MINUTE = timedelta(minutes=1)
FIRST_WH = 41_230_700


def reading(meter: str, minute: int, wh: int | None, doubt: str = "", *, trusted: bool = True) -> Reading:
    at = Moment(START + minute * MINUTE, "boot-1", minute * 60.0, trusted)
    return Reading(meter, at, wh, {"active_power": float(minute)}, doubt=doubt)


@pytest.fixture
def store() -> Iterator[Store]:
    """An hour of two meters. The roof's counter is doubted at 10; at 20 the clock was not trusted, in another boot."""
    with in_memory() as folder:
        opened = Store.writer(folder)
        opened.readings.begin("site", "Asia/Singapore", "boot-1", START)
        for meter in (ROOF, SHED):
            opened.readings.know_meter(meter.id, meter.production)
        for minute in range(60):
            opened.readings.begin("site", "Asia/Singapore", "boot-1" if minute > 20 else "boot-0", START)
            wh = FIRST_WH + 100 * minute
            roof = reading("roof", minute, wh, "the counter fell" if minute == 10 else "", trusted=minute != 20)
            opened.readings.add([roof, reading("shed", minute, 5)])
        first = next(one for one in opened.readings.back("roof") if one.moment.at == START)
        assert first.id is not None
        opened.days.commission("roof", Border(START, FIRST_WH, 1_000_000, "start", first.id, None), START)
        yield opened
        opened.close()


def back(store: Store, since: float, until: float, most: int = 1000) -> list[PastSample]:
    return look_back(ROOF, store, START + since * MINUTE, START + until * MINUTE, most)


def minutes(found: list[PastSample]) -> list[float]:
    return [(one.at - START) / MINUTE for one in found]


def test_both_ends_belong_to_it_and_another_meter_does_not(store: Store) -> None:
    assert minutes(back(store, 30, 33)) == [30, 31, 32, 33]
    assert minutes(back(store, 29.5, 30.5)) == [30]
    assert minutes(back(store, 58, 999)) == [58, 59] and back(store, 60, 999) == [] and back(store, -9, -1) == []
    assert minutes(back(store, -99, 999)) == [minute for minute in range(60) if minute != 20]


def test_pages_follow_each_other_without_a_gap(store: Store) -> None:
    found: list[PastSample] = []
    since = START
    while page := look_back(ROOF, store, since, START + 60 * MINUTE, 7):
        found += page
        since = page[-1].at + timedelta(microseconds=1)
    assert found == back(store, 0, 60)


def test_a_sample_has_the_running_total_of_its_moment_and_a_doubted_counter_none(store: Store) -> None:
    found = dict(zip(minutes(back(store, 0, 60)), back(store, 0, 60), strict=True))
    assert found[30].values == {"active_power": 30.0, "energy_export": FIRST_WH + 3000}
    assert found[30].total_wh == 1_003_000
    assert found[10].values == {"active_power": 10.0} and found[10].total_wh is None
    assert look_back(SHED, store, START, START, 9)[0].total_wh is None, "nothing is booked of that meter yet"


def test_the_running_total_goes_on_over_a_seam(store: Store) -> None:
    at = START + 59.5 * MINUTE
    store.seams.record(Seam("roof", at, "swap", FIRST_WH + 5950, 20, note="new meter"), [], at)
    store.readings.add([reading("roof", 60, 70)])
    assert [one.total_wh for one in back(store, 59, 60)] == [1_005_900, 1_006_000]


def test_a_clock_that_was_set_back_a_little_hides_nothing(store: Store) -> None:
    store.readings.add([reading("roof", 55, FIRST_WH + 6000)])
    assert minutes(back(store, 54, 57)) == [54, 55, 55, 56, 57]


def test_what_waited_for_a_card_and_was_stored_meter_by_meter_is_found(store: Store) -> None:
    """Ids are not in order of time then."""
    for meter in ("roof", "shed"):
        store.readings.add([reading(meter, minute, FIRST_WH + 100 * minute) for minute in range(60, 300)])
    for minute in range(300, 360):
        store.readings.add([reading(meter, minute, FIRST_WH + 100 * minute) for meter in ("roof", "shed")])
    for one in (ROOF, SHED):
        for since, until in ((60, 299), (120, 240), (200, 299), (30, 359)):
            found = look_back(one, store, START + since * MINUTE, START + until * MINUTE, 1000)
            assert minutes(found) == list(range(since, until + 1))


def test_a_week_is_read_by_the_day_and_nothing_is_left_out(store: Store) -> None:
    """Days are entered at their borders, also where the clock was set back over one, and where nothing was read."""
    wanted = [*range(60, 3000, 10), *range(7000, 9000, 10)]
    for minute in wanted:
        store.readings.add([reading("roof", minute, FIRST_WH + 100 * minute)])
    by_minute = {(one.moment.at - START) / MINUTE: one.id or 0 for one in store.readings.back("roof")}
    for day in range(1, 7):
        at = day * 1440
        before, after = (max(m for m in by_minute if m <= at), min((m for m in by_minute if m > at), default=None))
        border = Border(
            START + at * MINUTE, FIRST_WH, 1_000_000, "read", by_minute[before], by_minute[after] if after else None
        )
        with store.readings._db.writing():
            store.days._insert_border("roof", border)
    found: list[float] = []
    while page := minutes(back(store, found[-1] + 0.1 if found else 60, 9999, 7)):
        found += page
    assert found == wanted


def test_what_waits_for_its_date_is_waited_for(store: Store) -> None:
    """A clock that is trusted by now: what was read before that will lie before the others, once it is dated."""
    for minute, trusted in ((100, True), (30, False), (31, False), (130, True)):
        store.readings.add(
            [
                replace(
                    reading("roof", minute, FIRST_WH + 9000, trusted=trusted),
                    moment=Moment(
                        START + minute * MINUTE, "boot-1", 60.0 * minute + (0 if trusted else 6000 - 60 * 20), trusted
                    ),
                )
            ]
        )
    assert minutes(back(store, 59, 999)) == [59, 100]
    store.readings.date_back("boot-1", START + 130 * MINUTE, 130 * 60.0)
    assert minutes(back(store, 59, 999)) == [59, 100, 110, 111, 130]
