"""The card fails under the store: nothing is written, and it is had back, checked, when that is over."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from heliograph.core.errors import StoreError, StoreFault
from heliograph.store import Store, reserve
from heliograph.store.connection import FILE, _laid_down_again, _looked_through
from tests.cards import as_root, failing, filled, remounted, small_card
from tests.store.test_store import START, closed, reading


def begun(store: Store) -> Store:
    store.introduce(lambda: _know(store))
    return store


def _know(store: Store) -> None:
    store.readings.begin("site", "Asia/Singapore", "boot-1", START)
    store.readings.know_map("d1", "eastron-sdm630", "text")
    for meter in ("roof", "barn"):
        store.readings.know_meter(meter, "energy_export")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = begun(Store.writer(tmp_path))
    yield opened
    opened.close()


def indices(store: Store) -> list[int | None]:
    return [one.index_wh for one in store.readings.back("roof")][::-1]


def test_nothing_is_written_from_a_fault_until_the_card_is_back(store: Store) -> None:
    store.readings.add([reading(0, 100)])
    with failing():
        with pytest.raises(StoreFault, match="disk I/O error"):
            store.readings.add([reading(1, 110)])
        assert store.fault is not None and "dmesg" in store.fault.hint
        with pytest.raises(StoreFault):
            store.mend()
    with pytest.raises(StoreFault):
        store.journal.learn("x", 1)  # the card works again, but nobody has looked at it
    store.mend()
    assert store.fault is None
    store.readings.add([reading(1, 110), reading(2, 120)])
    last = store.readings.last_good("roof")
    assert indices(store) == [100, 110, 120] and last is not None and last.index_wh == 120
    assert store.journal.learned("x") is None


def test_what_a_failed_commit_stored_all_the_same_is_not_stored_twice(store: Store) -> None:
    batch = [reading(0, 100), reading(0, 5, meter="barn"), reading(1, 110)]
    store.readings.add(batch[:2])
    with failing(), pytest.raises(StoreFault):
        store.readings.add([reading(2, 115)])
    store.mend()
    store.readings.add([*batch, reading(2, 115)])
    assert indices(store) == [100, 110, 115]
    assert len(list(store.readings.back("barn"))) == 1
    # Where no commit was unclear nobody looks: it is the offering that has to be right.
    store.readings.add([reading(2, 115)])
    assert indices(store) == [100, 110, 115, 115]


def test_a_defect_of_the_program_is_no_fault_of_the_card(store: Store) -> None:
    for statement in ("INSERT INTO nowhere VALUES (1)", "INSERT INTO meter (name, production) VALUES ('roof', 'x')"):
        with pytest.raises(StoreError) as caught, store._connection.writing():
            store._connection.execute(statement)
        assert not isinstance(caught.value, StoreFault)
        assert store.fault is None
    store.readings.add([reading(0, 100)])


def test_a_fault_inside_a_transaction_of_several_steps_leaves_nothing_of_it(store: Store) -> None:
    closed(store, 0)
    with failing(), pytest.raises(StoreFault):
        closed(store, 1)
    store.mend()
    assert [day.day.day for day in store.days.all()] == [14]
    closed(store, 1)
    assert [day.day.day for day in store.days.all()] == [14, 15]


def test_a_store_that_vanished_is_not_replaced_by_an_empty_one(store: Store, tmp_path: Path) -> None:
    store.readings.add([reading(0, 100)])
    with failing(), pytest.raises(StoreFault):
        store.readings.add([reading(1, 110)])
    store._connection.close()
    (tmp_path / FILE).rename(tmp_path / "away")
    with pytest.raises(StoreFault, match="CANTOPEN"):
        store.mend()
    assert not (tmp_path / FILE).exists()
    (tmp_path / "away").rename(tmp_path / FILE)
    store.mend()
    assert indices(store) == [100]


def test_a_file_that_is_damaged_is_not_written_again(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        closed(store, number)
    with failing(), pytest.raises(StoreFault):
        store.readings.add([reading(1, 110)])
    raw = sqlite3.connect(tmp_path / FILE)
    (page,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'day'").fetchone()
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    with (tmp_path / FILE).open("r+b") as file:
        file.seek((page - 1) * 4096)
        kept = file.read(4096)
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    with pytest.raises(StoreFault, match="SQLITE_CORRUPT"):
        store.mend()
    assert store.fault is not None and "Restart" in store.fault.hint
    with (tmp_path / FILE).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(kept)
    store.mend()  # it was the reading that went wrong, not the card
    assert len(store.days.all()) == 3


def test_a_link_to_a_reading_that_is_not_there_is_found(store: Store) -> None:
    store.readings.add([reading(0, 100)])
    _looked_through(store._connection._ready(write=True))
    with store._connection.writing():
        store._connection.execute("UPDATE meter SET last = 99 WHERE name = 'roof'")
    with pytest.raises(sqlite3.DatabaseError, match="newest reading of roof"):
        _looked_through(store._connection._ready(write=True))


def test_a_log_that_is_laid_down_again_says_the_same(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(range(256)) * 1000)
    _laid_down_again(log)
    assert log.read_bytes() == bytes(range(256)) * 1000
    _laid_down_again(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_readers_have_no_faults_and_close_nothing(store: Store, tmp_path: Path) -> None:
    reader = Store.reader(tmp_path)
    with pytest.raises(StoreError, match="readonly"):
        reader.journal.learn("x", 1)
    assert reader.fault is None and reader.readings.meters() == store.readings.meters() == ["roof", "barn"]
    reader.close()


@as_root
def test_on_a_full_card_days_are_written_from_the_reserve(tmp_path: Path) -> None:
    with small_card(tmp_path / "card") as card:
        store = begun(Store.writer(card))
        closed(store, 0)
        held = (card / reserve.FILE).stat().st_size
        assert held == 2 * 1024 * 1024 // reserve.SHARE and not store.reserve.short
        other = filled(card)
        with pytest.raises(StoreFault, match="full"):
            for minute in range(10_000):
                store.readings.add([reading(minute, 100 + minute)])
        before = len(indices(store))
        assert before > 0 and store.fault is not None  # what was stored can be read meanwhile
        store.mend()
        assert store.fault is None and store.reserve.short and not (card / reserve.FILE).exists()
        closed(store, 1)
        assert [day.day for day in store.days.all()] == [date(2026, 3, 14), date(2026, 3, 15)]
        assert not store.reserve.hold()
        other.unlink()
        assert store.reserve.hold() and not store.reserve.short
        store.close()


@as_root
def test_a_card_that_is_read_only_at_the_start_can_be_read_and_is_written_when_it_can_be(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", "8m") as card:
        store = begun(Store.writer(card))
        closed(store, 0)
        store.close()
        remounted(card, "ro")
        store = begun(Store.writer(card))
        assert store.fault is not None and not store.reserve.short
        assert len(store.days.all()) == 1
        with pytest.raises(StoreFault):
            store.mend()
        assert len(store.days.all()) == 1
        remounted(card, "rw")
        store.mend()
        assert store.fault is None
        closed(store, 1)
        assert len(store.days.all()) == 2
        store.close()


@as_root
def test_a_new_site_whose_card_is_read_only_begins_when_it_can(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", "8m") as card:
        remounted(card, "ro")
        store = begun(Store.writer(card))
        with pytest.raises(StoreFault):
            store.readings.meters()
        remounted(card, "rw")
        store.mend()
        assert store.readings.meters() == ["roof", "barn"]
        store.readings.add([reading(0, 100)])
        store.close()


def test_both_ends_of_a_gap_outlive_thinning(store: Store) -> None:
    """A day that is held rests on them when it is released."""
    for minute in [*range(130, 171), *range(400, 431)]:
        store.readings.add([reading(minute, 1000 + minute)])
    store.readings.thin(START + timedelta(minutes=420), hourly=True)
    left = [round((r.moment.at - START).total_seconds() / 60) for r in store.readings.back("roof")][::-1]
    assert [minute for minute in left if minute < 415] == [130, 170, 400]
