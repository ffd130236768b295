"""A database of every schema version that was ever shipped still opens, twice, and says what it said.

`python -m tests.store.test_saved` writes the newest one; older ones are never written again.
"""

from __future__ import annotations

import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.meaning import meaning_of
from heliograph.core.readings import Moment, Reading, Source
from heliograph.store import Store
from heliograph.store.connection import FILE
from heliograph.store.schema import migrations
from heliograph.work.close_days import close_days
from tests.fakes import RULES, START, FakeClock, a_meter

SAVED = Path(__file__).parent / "saved"
NEWEST = "v6"


def make(folder: Path) -> None:
    """Two days of a meter, the first one confirmed; a doubtful reading; something learned."""
    clock, meter = FakeClock(), a_meter()
    store = Store.writer(folder)
    store.readings.begin("saved", "Asia/Singapore", "boot-1", START)
    store.readings.know_map("digest", meter.map.name, "the map's text")
    store.readings.know_meter("roof", "energy_export")
    store.readings.remember_serial("roof", "23451234")
    meaning = meaning_of(meter.map, "energy_export", {})
    assert meaning is not None
    store.readings.remember_meaning("roof", "energy_export", meaning.as_json())
    for hours, wh, doubt in ((8, 41_230_000, ""), (12, 7, "fell"), (23.99, 41_271_237, ""), (47.99, 41_300_000, "")):
        moment = Moment(START + timedelta(hours=hours), "boot-1", hours * 3600, True)
        source = Source(1, "input", 0x4A, 2, "digest")
        store.readings.add([Reading("roof", moment, wh, {"frequency": 50.02}, (0x471D, 0x12DA), source, doubt)])
    clock.at = START + timedelta(hours=49)
    close_days([meter], store, clock, RULES)
    rows = store.outbox.candidates("platform", clock.now(), ordered=False, limit=1)
    store.outbox.claim("platform", Parcel("/batches", b'{"Devices":[]}', tuple(rows)), clock.now(), clock.now())
    store.outbox.settle([(rows[0].id, Verdict("confirmed", "read-back"), clock.now())], clock.now())
    store.journal.learn("device/roof/eastron-sdm630", {"max_words": 60})
    store.close()


@pytest.mark.parametrize("version", sorted(path.stem for path in SAVED.glob("*.db")))
def test_a_saved_database_opens_twice_and_says_the_same(tmp_path: Path, version: str) -> None:
    shutil.copy(SAVED / f"{version}.db", tmp_path / FILE)
    for _ in range(2):
        store = Store.writer(tmp_path)
        assert [(day.day.day, day.period_wh, day.total_wh) for day in store.days.all()] == [
            (14, 41_237, 41_237),
            (15, 28_763, 70_000),
        ]
        assert store.outbox.counts() == {"platform": {"confirmed": 1, "due": 1}}
        assert store.outbox.claim_body(1) == ("/batches", b'{"Devices":[]}')
        readings = list(store.readings.back("roof"))
        assert [reading.index_wh for reading in readings] == [41_300_000, 41_271_237, 7, 41_230_000]
        assert readings[0].values == {"frequency": 50.02} and readings[0].words == (0x471D, 0x12DA)
        assert store.journal.learned("device/roof/eastron-sdm630") == {"max_words": 60}
        counter, meaning = store.readings.meaning("roof") or ("", None)
        assert counter == "energy_export" and (meaning is not None) == (int(version[1:]) >= 6)
        assert store._connection.one("PRAGMA integrity_check") == {"integrity_check": "ok"}
        store.close()


@pytest.mark.parametrize("version", sorted(path.stem for path in SAVED.glob("*.db")))
def test_a_saved_database_is_proven_from_now_on(tmp_path: Path, version: str) -> None:
    """Days that an older version closed get their entries when the new one starts, once."""
    shutil.copy(SAVED / f"{version}.db", tmp_path / FILE)
    for _ in range(2):
        store = Store.writer(tmp_path)
        store.days.carry_over(START + timedelta(days=9))
        entries = [entry.content for entry in store.chain.entries()]
        assert [entry["kind"] for entry in entries] == ["commission", "day", "day", "verdict"]
        assert [entry.get("period_wh") for entry in entries] == [None, 41_237, 28_763, None]
        store.close()


def test_every_migration_has_its_saved_database() -> None:
    raw = sqlite3.connect(SAVED / f"{NEWEST}.db")
    applied = [name for (name,) in raw.execute("SELECT name FROM _sqlite_migrations")]
    raw.close()
    assert applied == [migration.name for migration in migrations._migrations]
    assert [migration.name for migration in migrations._migrations] == sorted(
        (path.stem for path in SAVED.glob("*.db")), key=lambda name: int(name[1:])
    )


if __name__ == "__main__":
    SAVED.mkdir(exist_ok=True)
    make(SAVED)
    (SAVED / FILE).rename(SAVED / f"{NEWEST}.db")
    for beside in ("claimed", "reserve"):
        (SAVED / beside).unlink()
