from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from heliograph.core.errors import StoreError, UsageError
from heliograph.store import Store
from heliograph.store.connection import FILE
from heliograph.store.copies import copy_whole, sweep, target_of, verified
from tests.store.test_store import REPORT, START, closed, reading

NOW = datetime(2026, 3, 20, 1, 2, 3, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.writer(tmp_path)
    opened.readings.begin("site", "Asia/Singapore", "boot-1", START)
    opened.readings.know_map("d1", "eastron-sdm630", "text")
    for meter in ("roof", "barn"):
        opened.readings.know_meter(meter, "energy_export")
    for number in range(3):
        closed(opened, number)
    opened.readings.add([reading(5000 + minute, 9000 + minute) for minute in range(50)])
    assert REPORT.uplink in opened.outbox.counts()
    yield opened
    opened.close()


def test_a_copy_holds_what_was_committed_and_is_made_beside_the_writer(store: Store, tmp_path: Path) -> None:
    made = copy_whole(tmp_path, target_of(tmp_path, None, NOW))
    assert made.path == tmp_path / "copies" / "heliograph-20260320T010203Z.db"
    assert (made.last_day, made.size) == (date(2026, 3, 16), made.path.stat().st_size)
    assert verified(made.path) == made
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]
    (tmp_path / "other").mkdir()
    made.path.rename(tmp_path / "other" / FILE)
    again = Store.writer(tmp_path / "other")
    assert again.days.all() == store.days.all()
    assert list(again.readings.back("roof")) == list(store.readings.back("roof"))
    again.close()


def test_what_a_power_cut_left_of_a_copy_is_swept_and_copies_stay(store: Store, tmp_path: Path) -> None:
    made = copy_whole(tmp_path, target_of(tmp_path, None, NOW))
    del store
    for name in ("heliograph-20260319T000000Z.db.partial", "heliograph-20260319T000000Z.db.partial-journal"):
        (made.path.parent / name).write_text("half")
    sweep(tmp_path)
    assert list(made.path.parent.iterdir()) == [made.path]


def test_a_copy_never_takes_the_place_of_a_file(store: Store, tmp_path: Path) -> None:
    del store
    (tmp_path / "mine.db").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.db exists"):
        copy_whole(tmp_path, tmp_path / "mine.db")
    assert (tmp_path / "mine.db").read_text() == "mine"
    assert target_of(tmp_path, tmp_path, NOW).name == "heliograph-20260320T010203Z.db"
    with pytest.raises(StoreError, match="no copy could be made") as caught:
        copy_whole(tmp_path, tmp_path / "nowhere" / "x.db")
    assert "leave PATH out" in caught.value.hint


# Each of these is a sound file for SQLite.
WRONG = [
    ("DROP TRIGGER day_is_final", "UPDATE day SET period_wh = period_wh + 1 WHERE id = 2", "difference of its borders"),
    ("DROP TRIGGER border_is_final", "UPDATE border SET index_wh = index_wh + 256 WHERE id = 3", "moved otherwise"),
    ("DROP TRIGGER border_is_final", "UPDATE border SET before = 77", "not there"),
    ("SELECT 1", "UPDATE outbox SET date = '2026-03-11' WHERE id = 2", "not the one of its day"),
    ("SELECT 1", "UPDATE reading SET layout = 9 WHERE id = 7", "leads nowhere"),
    ("SELECT 1", "UPDATE reading SET vals = '[5.5' WHERE id = 7", "leads nowhere"),
    ("SELECT 1", "UPDATE meter SET last = 4711 WHERE id = 1", "newest reading"),
    ("SELECT 1", "INSERT INTO _sqlite_migrations SELECT * FROM (SELECT 99, 'heliograph', 'v99', 'x')", "newer"),
]


@pytest.mark.parametrize(("first", "change", "said"), WRONG)
def test_a_copy_that_contradicts_itself_is_refused(
    store: Store, tmp_path: Path, first: str, change: str, said: str
) -> None:
    del store
    made = copy_whole(tmp_path, tmp_path / "copy.db")
    raw = sqlite3.connect(made.path)
    raw.execute(first)
    raw.execute(change)
    raw.commit()
    raw.close()
    with pytest.raises(StoreError, match=said):
        verified(made.path)


def test_a_damaged_source_makes_no_copy(store: Store, tmp_path: Path) -> None:
    store._connection.execute("UPDATE meter SET last = 4711 WHERE id = 1")
    with pytest.raises(StoreError, match="newest reading"):
        copy_whole(tmp_path, tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy.db*"))
