"""A seam that was recorded with a wrong index is corrected by a record of its own; closed days never change."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from heliograph import library
from heliograph.core.errors import StoreError, UsageError
from heliograph.core.ledger import Seam, continuous
from heliograph.store import Store
from heliograph.work.amend import record_correction, record_seam
from heliograph.work.close_days import close_days
from heliograph.work.explain import explain
from heliograph.work.health import health
from tests.fakes import RULES, START, FakeClock
from tests.work.one_meter import METER, at, read, store

__all__ = ["store"]

WHY = "the old display was misread; photo of 14 March"


def close(store: Store, hours: float) -> FakeClock:
    clock = FakeClock(at(hours))
    close_days([METER], store, clock, RULES)
    return clock


def swapped(store: Store, old_wh: int = 35_000) -> int:
    """Swapped at ten o'clock with `old_wh` on the old display (1,000 an hour before and 30,000 at nine)."""
    read(store, 1, 1_000)
    read(store, 9, 30_000)
    for hours, wh in ((11, 700), (23.99, 3_100)):
        read(store, hours, wh, "energy_export fell")
    recorded = record_seam(METER, Seam("roof", at(10), "swap", old_wh, 100, new_serial="222"), store, at(23.995))
    assert recorded.seam.id is not None
    for hours, wh in ((24.5, 3_100), (36, 9_000), (47.99, 12_000)):
        read(store, hours, wh)
    return recorded.seam.id


def periods(store: Store) -> dict[int, int]:
    return {day.day.day: day.period_wh for day in store.days.all()}


def test_the_first_open_day_takes_the_difference_and_closed_ones_stay(store: Store) -> None:
    seam = swapped(store)
    close(store, 25)
    assert periods(store) == {14: 34_000 + 3_000}
    done = record_correction(METER, seam, 36_500, 100, WHY, store, at(30))
    assert (done.seam.moves_wh, done.seam.corrects, done.seam.note) == (1_500, seam, WHY)
    clock = close(store, 49)
    assert periods(store) == {14: 37_000, 15: 8_900 + 1_500}
    assert store.days.all()[-1].total_wh == 35_500 + 11_900
    assert health("site", [METER], store, clock, RULES).meters[0].total_wh == 35_500 + 11_900
    told = explain("roof", at(24).date() + timedelta(days=1), store, at(49), library.from_texts)
    assert any("correction" in one["text"] and "+1.500 kWh" in one["text"] for one in told["seams"])
    assert "correction" in health("site", [METER], store, clock, RULES).meters[0].seam


def test_what_was_claimed_too_much_is_made_up_for_without_a_negative_day(store: Store) -> None:
    seam = swapped(store, old_wh=80_000)  # 50 kWh in an hour: the most this plant can do
    close(store, 25)
    assert periods(store) == {14: 79_000 + 3_000}
    record_correction(METER, seam, 66_000, 100, WHY, store, at(30))
    for hours, wh in ((60, 18_000), (71.99, 20_000), (95.99, 30_000)):
        read(store, hours, wh)
    clock = close(store, 97)
    # 14 kWh too much: all 8.9 of the next day and 5.1 of the one after it are taken back.
    assert periods(store) == {14: 82_000, 15: 0, 16: 2_900, 17: 10_000}
    assert sum(periods(store).values()) == 65_000 + 29_900
    assert all(b.opening.id == a.closing.id for a, b in pairwise(store.days.all()))
    assert health("site", [METER], store, clock, RULES).meters[0].total_wh == 94_900


def test_a_correction_of_an_open_seam_works_on_its_own_moment(store: Store) -> None:
    seam = swapped(store)
    record_correction(METER, seam, 36_000, 200, WHY, store, at(24))
    close(store, 25)
    assert periods(store) == {14: 35_000 + 2_900}


def test_a_correction_can_be_corrected_again(store: Store) -> None:
    seam = swapped(store)
    close(store, 25)
    record_correction(METER, seam, 36_500, 100, WHY, store, at(30))
    second = record_correction(METER, seam, 35_200, 100, WHY, store, at(31))
    assert second.seam.moves_wh == -1_300
    close(store, 49)
    assert periods(store) == {14: 37_000, 15: 8_900 + 200}


@pytest.mark.parametrize(
    ("old_wh", "new_wh", "note", "says"),
    [
        (29_000, 100, WHY, "showed 30.000 kWh"),
        (95_000, 100, WHY, "cannot have come from 30.000 to 95.000"),
        (35_000, 900, WHY, "cannot have come from 0.900 kWh to the 0.700 kWh"),
        (35_000, 100, WHY, "rests on these counters already"),
        (36_000, 100, " ", "needs its reason"),
    ],
)
def test_what_nobody_metered_is_refused_and_nothing_is_written(
    store: Store, old_wh: int, new_wh: int, note: str, says: str
) -> None:
    seam = swapped(store)
    close(store, 25)
    with pytest.raises(UsageError, match=says):
        record_correction(METER, seam, old_wh, new_wh, note, store, at(30))
    assert [one.kind for one in store.seams.all("roof")] == ["swap"]


def test_a_seam_that_does_not_exist_is_named(store: Store) -> None:
    seam = swapped(store)
    with pytest.raises(UsageError, match=f"no seam 77 to correct; seams: {seam} "):
        record_correction(METER, 77, 36_000, 100, WHY, store, at(30))


def test_a_correction_is_for_ever_and_a_dry_run_writes_none(store: Store) -> None:
    seam = swapped(store)
    record_correction(METER, seam, 36_000, 100, WHY, store, at(30), dry=True)
    assert len(store.seams.all("roof")) == 1
    record_correction(METER, seam, 36_000, 100, WHY, store, at(30))
    for sql in ("UPDATE seam SET moves_wh = 7", "DELETE FROM seam"):
        with pytest.raises(StoreError, match="never"), store._connection.writing():
            store._connection.execute(sql)
    event = store.journal.events(1)[0]
    assert event["kind"] == "correction" and "instead of what seam" in event["text"]


def test_random_corrections_never_make_a_day_negative_and_end_at_the_true_total(tmp_path: Path) -> None:
    """Days and corrections in any order: in the end it is booked what the last correction says."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    below = 0
    for number in range(15):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = Store.writer(folder)
        store.readings.begin("site", "Asia/Singapore", "boot-1", START)
        store.readings.know_map(METER.map_digest, METER.map.name, "")
        store.readings.know_meter("roof", METER.production)
        seam, true_old, wh = swapped(store), 35_000, 12_000
        for day in range(1, 9):
            close(store, 24 * day + 1)
            if chance.random() < 0.4:
                old = chance.randrange(30_000, 90_000)
                if old != true_old:
                    record_correction(METER, seam, old, 100, WHY, store, at(24 * day + 1))
                    true_old = old
            if day > 1:
                wh += chance.randrange(0, 60_000)
                read(store, 24 * day + 23.99, wh)
        wh += 100_000  # long enough to make up for whatever was booked too much
        read(store, 24 * 9 + 23.99, wh)
        close(store, 24 * 10 + 1)
        days = store.days.all()
        assert len(days) == 10 and all(day.period_wh >= 0 for day in days), seed
        assert sum(day.period_wh for day in days) == true_old - 1_000 + wh - 100, seed
        seams = store.seams.all("roof")
        below += any(one.moves_wh < 0 for one in seams)
        assert continuous(seams, at(24 * 10), wh) == true_old + wh - 100, seed
        store.close()
    assert below > 3
